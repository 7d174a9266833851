"""Models in 4 and 8 bits: every family loads so, answers alone as among others, is saved and read again bit for bit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onsight.core.errors import StartError
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.loading import Checkpoint, saved_scheme, weight_files
from onsight.engines.torch_engine.memory import pick_scheme, survey
from onsight.engines.torch_engine.quantize import QuantisedLinear, Scheme, int8_is_exact
from onsight.engines.torch_engine.saving import save_quantised
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.verify import verify
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.fidelity import Seen, Tiny
from tests.engines.torch_engine.asking import Answer, answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.test_parity import ragged
from tests.tiny_models import draw, write_smolvlm

pytestmark = [pytest.mark.model, pytest.mark.skipif(not int8_is_exact(), reason="heads of 8 bits need VNNI")]

SCHEMES: tuple[Scheme, ...] = ("int4", "int8")
CPU = torch.device("cpu")
RED = draw((200, 0, 0))
ASKED = asking(turn(RED, "What colour?"), max_tokens=8)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """`halved(folder)` is that checkpoint stored as bfloat16, as published ones are."""

    def halved(folder: Path) -> Path:
        copy = tmp_path_factory.mktemp("halves") / "model"
        shutil.copytree(folder, copy)
        for path in weight_files(copy):
            save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
        return copy

    return halved


def seen(made: Answer) -> Seen:
    """What a watched engine's sampler saw."""
    assert made.seen is not None
    return made.seen


def whole_model(folder: Path, scheme: Scheme | None) -> tuple[nn.Module, dict[str, QuantisedLinear]]:
    """The model as it is once it is read, and its products of few bits, not settled."""
    found: list[nn.Module] = []
    linears: dict[str, QuantisedLinear] = {}

    def keep(model: nn.Module) -> None:
        found.append(model)
        for name, part in model.named_modules():
            if isinstance(part, QuantisedLinear):
                linears[name] = part
                part.rounded = part.widen().clone()

    checkpoint = Checkpoint(folder, CPU, torch.float32, scheme=scheme, keep=keep)
    load_family(find_card("tiny", folder).family, checkpoint, Vocabulary(folder))
    return found[0], linears


def test_every_projection_and_the_head_are_rounded_and_nothing_else(family: Tiny, scheme: Scheme) -> None:
    plain = {name: tensor for path in weight_files(family.folder) for name, tensor in load_file(path).items()}
    _, linears = whole_model(family.folder, scheme)
    rounded = {part: linear.rounded[rows] for linear in linears.values() for part, rows in linear.spans()}
    wanted = {
        name.removesuffix(".weight")
        for name in plain
        if name.endswith(("_proj.weight", "lm_head.weight")) and "vision" not in name and "visual" not in name
    }
    assert rounded.keys() == wanted
    for name, weight in rounded.items():
        exact = 0.02 if scheme == "int8" or name == "lm_head" else 0.12
        assert (weight - plain[f"{name}.weight"]).norm() < exact * plain[f"{name}.weight"].norm(), name


async def test_answers_are_those_of_the_rounded_weights(
    family: Tiny, scheme: Scheme, start: StartEngine, tmp_path: Path
) -> None:
    """The same engine, in float32, on a checkpoint whose weights are the rounded ones: what differs is rounding of
    inputs."""
    _, linears = whole_model(family.folder, scheme)
    folder = tmp_path / "rounded"
    shutil.copytree(family.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for linear in linears.values():
        for part, rows in linear.spans():
            tensors[f"{part}.weight"] = linear.rounded[rows].contiguous()
    save_file(tensors, folder / "model.safetensors")
    few = await answer(await start(family.folder, quantize=scheme), ASKED)
    same = await answer(await start(folder), replace(ASKED, sampling=replace(ASKED.sampling)))
    true = await answer(await start(family.folder), replace(ASKED, sampling=replace(ASKED.sampling)))
    first, wanted, plain = (seen(made).logits[0] for made in (few, same, true))
    assert (first - wanted).norm() < 0.05 * wanted.norm()
    if scheme == "int4":
        assert (first - plain).norm() > 2 * (first - wanted).norm()


async def test_batch_mates_and_joins_change_no_answer(
    family: Tiny, scheme: Scheme, start: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours alone against ours among others, three slots for eight requests: the same tokens, the same logits."""
    if scheme == "int8":
        # The last bit of a float32 sum, which goes by who shares the batch, may tip an input over to the next of 255
        # numbers; in float64 no such bit is large enough, so that whatever differs is a mate's part in the answer.
        monkeypatch.setattr("onsight.engines.torch_engine.loading.pick_dtype", lambda *_: torch.float64)
    engine = await start(family.folder, max_num_seqs=3, quantize=scheme)
    among = await asyncio.gather(*(answer(engine, request) for request in ragged()))
    engine = await start(family.folder, max_num_seqs=1, quantize=scheme, image_cache_bytes=0)
    for request, one in zip(ragged(), among, strict=True):
        alone = await answer(engine, replace(request, sampling=replace(request.sampling)))
        assert seen(one).tokens == seen(alone).tokens
        # The kernel of 4 bits is bfloat16's, where a last bit is large enough; the difference stays one of roundings.
        assert (seen(one).logits - seen(alone).logits).abs().max() < (0.1 if scheme == "int4" else 1e-9)


async def test_a_saved_model_says_the_same_bit_for_bit(
    family: Tiny, scheme: Scheme, start: StartEngine, tmp_path: Path, halved: Callable[[Path], Path]
) -> None:
    folder, out = halved(family.folder), tmp_path / "saved"
    save_quantised(folder, find_card("tiny", folder), scheme, out)
    assert saved_scheme(out) == scheme
    made = await answer(await start(folder, quantize=scheme), ASKED)
    again = await answer(await start(out), replace(ASKED, sampling=replace(ASKED.sampling)))
    assert torch.equal(seen(made).logits, seen(again).logits)
    assert made.text == again.text


def test_saved_weights_stay_in_their_file(smolvlm: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    save_quantised(smolvlm, find_card("tiny", smolvlm), "int4", out)
    model, linears = whole_model(out, "int4")
    file = str((out / "model-00001-of-00001.safetensors").resolve())
    mapped = [one.addr.split("-") for one in psutil.Process().memory_maps(grouped=False) if one.path == file]
    spans = [(int(start, 16), int(stop, 16)) for start, stop in mapped]
    held = [linear.packed for name, linear in linears.items() if name != "lm_head"]
    held.append(model.get_submodule("model.text_model.embed_tokens").weight)
    assert len(held) == 2 * 4 + 1
    assert all(any(start <= tensor.data_ptr() < stop for start, stop in spans) for tensor in held)


def test_a_model_saved_on_another_processor_is_read_in_this_ones_order(smolvlm: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    script = (
        "import sys; from pathlib import Path; from onsight.models.card import find_card;"
        "from onsight.engines.torch_engine.saving import save_quantised; folder = Path(sys.argv[1]);"
        "save_quantised(folder, find_card('tiny', folder), 'int4', Path(sys.argv[2]))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", script, smolvlm, out], env=environment, check=True, timeout=120)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["order"] == "32-neighbours"
    _, here = whole_model(smolvlm, "int4")
    _, there = whole_model(out, "int4")
    assert all(torch.equal(here[name].rounded, there[name].rounded) for name in here)


async def test_a_model_saved_where_bytes_add_up_is_read_where_they_do_not(
    smolvlm: Path, start: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is made wide, so that inputs are not rounded, and the estimate counts it as what it takes."""
    out, settings = tmp_path / "saved", TorchSettings(device="cpu")
    card = find_card("tiny", smolvlm)
    save_quantised(smolvlm, card, "int4", out)
    few = await answer(await start(out), ASKED)
    told = survey(out, card, settings).memory.weights_bytes
    for module in ("quantize", "narrowing", "loading", "memory"):
        monkeypatch.setattr(f"onsight.engines.torch_engine.{module}.int8_is_exact", lambda: False)
    wide = await answer(await start(out), replace(ASKED, sampling=replace(ASKED.sampling)))
    _, linears = whole_model(out, "int4")
    head = linears["lm_head"]
    assert head._wide is not None
    assert 0 < (seen(few).logits[0] - seen(wide).logits[0]).norm() < 0.02 * seen(wide).logits[0].norm()
    took = survey(out, card, settings).memory.weights_bytes - told
    assert took == head._wide.nbytes - head.rounded.numel() - 8 * len(head.rounded)


def test_the_estimate_is_what_the_weights_take(
    family: Tiny, scheme: Scheme, tmp_path: Path, halved: Callable[[Path], Path]
) -> None:
    folder, out = halved(family.folder), tmp_path / "saved"
    card = find_card("tiny", folder)
    save_quantised(folder, card, scheme, out)
    model, linears = whole_model(folder, scheme)
    tensors = {id(one): one for one in model.state_dict(keep_vars=True).values()}.values()
    held = sum(one.nbytes for one in tensors)
    held += sum(8 * linear.out_features for linear in linears.values() if linear.packed.dtype == torch.int8)
    for where, choice in ((folder, scheme), (out, "auto")):
        found = survey(where, card, TorchSettings(device="cpu", quantize=choice))
        assert found.dtype == scheme
        assert found.memory.weights_bytes == pytest.approx(held, rel=0.04)  # but for filled blocks
    assert held < 0.75 * survey(folder, card, TorchSettings(device="cpu", quantize="none")).memory.weights_bytes


def test_a_tied_head_is_rounded_and_its_embedding_is_not(scheme: Scheme) -> None:
    from onsight.models.hub import locate_model

    model, linears = whole_model(locate_model("peek"), scheme)
    words = model.get_submodule("model.text_model.embed_tokens").weight
    assert words.dtype == torch.bfloat16
    stored = load_file(locate_model("peek") / "model.safetensors")
    assert torch.equal(words, stored["model.text_model.embed_tokens.weight"])
    assert (linears["lm_head"].rounded - words.float()).norm() < 0.02 * words.float().norm()


@pytest.mark.parametrize(("free", "wanted"), [(1 << 40, None), (1 << 19, "int4")])
def test_auto_is_4_bits_where_memory_is_short_and_says_so(
    free: int, wanted: str | None, smolvlm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onsight.engines.torch_engine.kv_cache.free_bytes", lambda device: free)
    with caplog.at_level(logging.WARNING):
        assert pick_scheme(smolvlm, TorchSettings(), CPU, torch.float32) == wanted
    assert ("docs/results/int4.md" in caplog.text) == (wanted is not None)
    assert pick_scheme(smolvlm, TorchSettings(quantize="none"), CPU, torch.float32) is None


def test_what_cannot_be_had_is_refused(smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four, gpu = TorchSettings(quantize="int4"), torch.device("cuda")
    with pytest.raises(StartError, match="int4 weights are for CPUs and CUDA, and the device is mps"):
        pick_scheme(smolvlm, four, torch.device("mps"), torch.float16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"need the package bitsandbytes: pip install 'onsight\[gpu-bits\]'"):
        pick_scheme(smolvlm, four, gpu, torch.bfloat16)
    monkeypatch.undo()
    card, out = find_card("tiny", smolvlm), tmp_path / "saved"
    save_quantised(smolvlm, card, "int4", out)
    with pytest.raises(StartError, match="is there already and not empty"):
        save_quantised(smolvlm, card, "int4", out)
    with pytest.raises(StartError, match="holds int4 weights already"):
        save_quantised(out, card, "int4", tmp_path / "other")
    with pytest.raises(StartError, match="int4 weights that are saved are for CPUs, and the device is cuda"):
        pick_scheme(out, TorchSettings(), gpu, torch.bfloat16)
    with pytest.raises(StartError, match=r"quantize is none, but .* holds int4 weights"):
        pick_scheme(out, TorchSettings(quantize="none"), CPU, torch.float32)
    with pytest.raises(StartError, match="holds int4 weights, which transformers cannot read"):
        verify(out, card, TorchSettings(device="cpu"))
    monkeypatch.setattr("onsight.engines.torch_engine.memory.int8_is_exact", lambda: False)
    with pytest.raises(StartError, match="int8 weights need a processor that adds up bytes"):
        pick_scheme(smolvlm, TorchSettings(quantize="int8"), CPU, torch.float32)


def test_a_gpu_gets_its_own_kind_of_few_bits(smolvlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    schemes = [
        pick_scheme(smolvlm, TorchSettings(quantize=choice), torch.device("cuda"), torch.bfloat16)
        for choice in ("int4", "int8", "none")
    ]
    assert schemes == ["gpu-nf4", "gpu-int8", None]


def test_weights_of_other_programs_are_refused(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model")
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(StartError, match="quantised by 'gptq', which is not read here"):
        pick_scheme(folder, TorchSettings(), CPU, torch.float32)


def test_a_saved_tensor_that_is_missing_is_named(smolvlm: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    save_quantised(smolvlm, find_card("tiny", smolvlm), "int4", out)
    path = out / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down_proj.scales"))
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(StartError, match=f"tensor {name} is missing"):
        whole_model(out, "int4")
