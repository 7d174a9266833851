"""What a model takes is worked out by its family from the files alone, and is what the loaded one then takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onsight.core.engine import PICTURE_PX
from onsight.core.errors import StartError
from onsight.engines.torch_engine.memory import survey
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.models.card import find_card
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import draw, write_smolvlm

pytestmark = pytest.mark.model

CPU = TorchSettings(device="cpu")
# Layers that see text, key-value heads, numbers a head; two numbers of four bytes each, a key's and a value's.
A_TOKEN = {"smolvlm": 2 * 2 * 16 * 8, "qwen": 2 * 2 * 16 * 8, "phi3": 2 * 2 * 16 * 8, "mllama": 2 * 2 * 16 * 8}
# Two cross-attention layers that keep four tiles of 17 places.
ASIDE = {"mllama": 2 * 2 * 16 * 8 * 4 * 17}


@pytest.fixture(params=["smolvlm", "qwen", "phi3", "mllama"])
def family(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param)


async def test_the_estimate_is_what_the_loaded_model_takes(family: tuple[str, Path], start: StartEngine) -> None:
    name, folder = family
    found = survey(folder, find_card(str(folder), folder), CPU)
    stored = load_file(folder / "model.safetensors")
    assert found.tensors == len(stored)
    assert found.context_tokens == 1024
    assert (found.dtype, found.device) == ("float32", "cpu")
    assert found.memory.weights_bytes == 4 * sum(tensor.numel() for tensor in stored.values())
    assert found.memory.token_bytes == A_TOKEN[name]
    engine = await start(folder)
    assert engine.status().memory == found.memory
    made = await answer(engine, asking(turn(draw((200, 0, 0), *PICTURE_PX), "?"), max_tokens=1))
    assert found.memory.picture_tokens == made.usage.image_tokens
    assert found.memory.picture_bytes == made.usage.image_tokens * A_TOKEN[name] + ASIDE.get(name, 0)


def test_half_as_many_bytes_a_number_are_half_the_memory(smolvlm: Path) -> None:
    card = find_card(str(smolvlm), smolvlm)
    whole = survey(smolvlm, card, CPU).memory
    half = survey(smolvlm, card, TorchSettings(device="cpu", dtype="bfloat16")).memory
    assert (2 * half.weights_bytes, 2 * half.token_bytes) == (whole.weights_bytes, whole.token_bytes)


def test_an_estimate_is_refused_for_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model", tensors={"extra": torch.zeros(1)})
    with pytest.raises(StartError, match="extra"):
        survey(folder, find_card(str(folder), folder), CPU)
