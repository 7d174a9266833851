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
from onsight.engines.torch_engine.loading import dtype_for, pick_device
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


async def test_a_renamed_tensor_is_named_as_it_should_be_and_as_it_is(spoil: Callable[..., Path]) -> None:
    name = "model.text_model.norm.weight"
    text = await refusal(spoil(lambda tensors: tensors.update({"model.norm": tensors.pop(name)})))
    assert f"tensor {name} is missing" in text
    assert "unexpected tensor model.norm;" in text


async def test_of_many_faults_the_first_are_told_and_the_rest_counted(spoil: Callable[..., Path]) -> None:
    text = await refusal(spoil(lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:7]]))
    assert "and 4 more is missing" in text


async def test_quantised_weights_are_refused(spoil: Callable[..., Path]) -> None:
    name = "model.text_model.norm.weight"
    text = await refusal(spoil(lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)})))
    assert name in text
    assert "quantised (F8_E4M3)" in text


def write_in_two_files(folder: Path) -> None:
    """The checkpoint's weights in two files, with an index that says which tensor is in which."""
    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        places |= {tensor: name for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


async def test_a_file_that_the_index_names_and_the_folder_lacks_is_named(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    write_in_two_files(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    text = await refusal(folder)
    assert "model.safetensors.index.json names model-00002-of-00002.safetensors" in text


async def test_with_an_index_other_weights_in_the_folder_are_not_read(
    spoil: Callable[..., Path], smolvlm: Path, start: StartEngine
) -> None:
    folder = spoil()
    write_in_two_files(folder)
    save_file({"stray": torch.zeros(2)}, folder / "consolidated.safetensors")
    request = asking(turn(draw((200, 0, 0)), "What colour?"))
    assert (await answer(await start(folder), request)).text == (await answer(await start(smolvlm), request)).text


@pytest.mark.parametrize("table", [{}, {"weight_map": {"x": "../elsewhere.safetensors"}}, {"weight_map": []}])
async def test_an_index_that_names_no_files_of_the_folder_is_refused(
    spoil: Callable[..., Path], table: dict[str, object]
) -> None:
    folder = spoil()
    (folder / "model.safetensors.index.json").write_text(json.dumps(table | {"metadata": {}}))
    assert "weight_map" in await refusal(folder)


async def test_a_tensor_that_is_in_two_files_is_named_with_both(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    name = "model.text_model.norm.weight"
    save_file({name: torch.ones(64)}, folder / "second.safetensors")
    text = await refusal(folder)
    assert name in text
    assert "second.safetensors" in text


async def test_a_tensor_under_an_older_name_and_its_own_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen, tmp_path / "twice"))
    tensors = load_file(folder / "model.safetensors")
    older = {"model.norm.weight": tensors["model.language_model.norm.weight"] + 1}
    save_file(tensors | older, folder / "model.safetensors")
    engine = TorchEngine(folder, find_card(str(folder), folder), TorchSettings(device="cpu"))
    with pytest.raises(StartError, match=r"norm\.weight and \S*norm\.weight are for the same place"):
        await engine.start()
    await engine.close()


async def test_weights_that_do_not_fit_in_memory_are_refused_before_they_are_read(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    numbers = 1 << 40
    header = json.dumps({"huge": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * numbers)  # sparse: it takes no room on the disk
    text = await refusal(folder)
    assert "4096.00 GiB as int4" in text  # `auto` narrows what would not fit; one row of numbers is not narrowed
    assert "GiB free" in text


def test_bfloat16_is_for_hardware_that_has_it() -> None:
    assert dtype_for("auto", "cpu", True) == torch.float32
    assert dtype_for("auto", "cuda", True) == torch.bfloat16
    assert dtype_for("auto", "cuda", False) == torch.float16
    assert dtype_for("auto", "mps", True) == torch.float16
    assert dtype_for("bfloat16", "cpu", True) == torch.bfloat16
    with pytest.raises(StartError, match="float16 or float32"):
        dtype_for("bfloat16", "cuda", False)


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


async def test_a_gpu_that_is_asked_for_and_not_there_is_a_refusal_or_a_warning(
    smolvlm: Path, start: StartEngine, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(StartError, match="device is cuda, but this machine has none"):
        await start(smolvlm, device="cuda")
    with caplog.at_level(logging.WARNING):
        engine = await start(smolvlm, device="cuda-or-cpu")
    assert "running on the CPU" in caplog.text
    assert engine.status().device == "cpu"


def test_a_pytorch_for_gpus_that_finds_none_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert pick_device("auto").type == "cpu"
    assert caplog.text == ""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert pick_device("auto").type == "cpu"
    assert "finds none" in caplog.text


def test_where_a_gpu_of_any_kind_is_wanted_none_is_a_refusal_that_says_how_to_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, device in (((True, False), "cuda"), ((False, True), "mps")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found[0])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda found=found: found[1])
        assert pick_device("gpu").type == device
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(StartError, match=r"--gpus all.* or pass --device cpu$"):
        pick_device("gpu")


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
