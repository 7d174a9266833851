"""A checkpoint is whole or refused, with one sentence that names what is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onsight.core.errors import StartError
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary, end_token_ids
from onsight.models.card import find_card
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import draw, write_smolvlm

pytestmark = pytest.mark.model


@pytest.fixture
def spoil(smolvlm: Path, tmp_path: Path) -> Callable[..., Path]:
    """`spoil(change)` is a copy of the checkpoint whose tensors went through `change`."""

    def spoil(change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None) -> Path:
        folder = tmp_path / "spoilt"
        shutil.copytree(smolvlm, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return spoil


async def refusal(folder: Path, **settings: object) -> str:
    """Why the engine does not start."""
    card = find_card("HuggingFaceTB/SmolVLM-tiny", folder)
    engine = TorchEngine(folder, card, TorchSettings(device="cpu", **settings))  # type: ignore[arg-type]
    with pytest.raises(StartError) as caught:
        await engine.start()
    await engine.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_missing_tensor_is_named(spoil: Callable[..., Path]) -> None:
    name = "model.connector.modality_projection.proj.weight"
    assert name in await refusal(spoil(lambda tensors: tensors.pop(name)))


async def test_an_unexpected_tensor_is_named(spoil: Callable[..., Path]) -> None:
    folder = spoil(lambda tensors: tensors.update({"model.text_model.extra.weight": torch.zeros(2)}))
    assert "model.text_model.extra.weight" in await refusal(folder)


async def test_a_tensor_of_another_shape_is_named_with_both_shapes(spoil: Callable[..., Path]) -> None:
    name = "model.text_model.norm.weight"
    text = await refusal(spoil(lambda tensors: tensors.update({name: torch.zeros(3)})))
    assert name in text
    assert "[3]" in text
    assert "[64]" in text


async def test_pickled_weights_are_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = await refusal(folder)
    assert "pytorch_model.bin" in text
    assert "safetensors" in text


async def test_code_that_comes_with_a_model_is_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"auto_map": {"AutoModel": "modeling_x.X"}}))
    assert "auto_map" in await refusal(folder)


async def test_an_adapter_in_place_of_a_model_is_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x/y"}))
    (folder / "config.json").unlink()
    assert "merge it into its base model" in await refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
async def test_a_missing_file_is_named(spoil: Callable[..., Path], name: str) -> None:
    folder = spoil()
    (folder / name).unlink()
    assert name in await refusal(folder)


async def test_a_missing_chat_template_is_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    assert "chat template" in await refusal(folder)


async def test_a_missing_folder_and_broken_files_are_refused(spoil: Callable[..., Path]) -> None:
    assert "no folder" in await refusal(Path("/nowhere/at/all"))
    folder = spoil()
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "model.safetensors" in await refusal(folder)


async def test_keys_and_values_that_cannot_fit_are_refused_with_the_numbers(smolvlm: Path) -> None:
    text = await refusal(smolvlm, max_model_len=1024, max_num_seqs=8, kv_cache_tokens=4096)
    assert "8192" in text
    assert "4096" in text
    assert "max_num_seqs" in text


async def test_a_context_past_the_models_own_is_refused(smolvlm: Path) -> None:
    assert "1024" in await refusal(smolvlm, max_model_len=5000)


async def test_a_context_that_nobody_asked_for_is_lowered_until_it_fits(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_num_seqs=2, kv_cache_tokens=600)
    assert engine.context_tokens == 300
    assert engine.status().kv_total_tokens == 600


async def test_cuda_without_a_gpu_is_a_warning(
    smolvlm: Path, start: StartEngine, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with caplog.at_level(logging.WARNING):
        engine = await start(smolvlm, device="cuda")
    assert "cuda" in caplog.text
    assert engine.status().device == "cpu"


async def test_progress_is_told_up_to_the_last_tensor(smolvlm: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = TorchSettings(device="cpu", threads=1)
    engine = TorchEngine(smolvlm, find_card("x", smolvlm), settings, lambda done, total: seen.append((done, total)))
    await engine.start()
    await engine.close()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == len(seen)


async def test_tied_output_weights_may_be_absent(smolvlm: Path, tmp_path: Path, start: StartEngine) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(smolvlm, folder)
    table = json.loads((folder / "config.json").read_text())
    table["tie_word_embeddings"] = table["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(table))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    engine = await start(folder)
    assert (await answer(engine, asking(turn(draw((200, 0, 0)), "?")))).usage.completion_tokens


async def test_bfloat16_runs(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, dtype="bfloat16")
    assert (await answer(engine, asking(turn(draw((200, 0, 0)), "What colour?")))).usage.completion_tokens


async def test_older_names_of_qwens_tensors_are_understood(qwen: Path, tmp_path: Path, start: StartEngine) -> None:
    folder = tmp_path / "older"
    shutil.copytree(qwen, folder)
    tensors = load_file(folder / "model.safetensors")
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
    }
    assert set(older).isdisjoint(set(tensors) - {"lm_head.weight"})
    save_file(older, folder / "model.safetensors")
    request = asking(turn(draw((200, 0, 0)), "What colour?"))
    assert (await answer(await start(folder), request)).text == (await answer(await start(qwen), request)).text


async def test_weights_in_several_files_are_read_together(smolvlm: Path, tmp_path: Path, start: StartEngine) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(smolvlm, folder)
    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        save_file(dict(part), folder / f"model-{number:05}-of-00002.safetensors")
    request = asking(turn(draw((200, 0, 0)), "What colour?"))
    assert (await answer(await start(folder), request)).text == (await answer(await start(smolvlm), request)).text


def test_a_tokenizer_without_an_end_does_not_end_answers_with_the_word_none(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        table = json.loads(path.read_text("utf-8")) if path.exists() else {}
        table.get("text_config", {})["eos_token_id"] = None
        path.write_text(json.dumps({**table, "eos_token_id": None, "eos_token": None}), "utf-8")

    class WordNone(Vocabulary):
        def find(self, token: str) -> int | None:
            return 7 if token == "None" else super().find(token)

    assert end_token_ids(folder, WordNone(folder)) == frozenset()
