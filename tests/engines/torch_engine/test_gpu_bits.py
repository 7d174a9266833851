"""What stands on a GPU with --quantize, tried on a CPU, for which bitsandbytes has the same operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("bitsandbytes", reason="the extra `gpu-bits` is not installed")

from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.gpu_bits import GpuInt8Linear, Nf4Linear
from onsight.engines.torch_engine.loading import Checkpoint, weight_bytes
from onsight.engines.torch_engine.quantize import QuantisedLinear, Scheme, packed_bytes
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.fidelity import Tiny
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.test_quantize import error, filled
from tests.tiny_models import draw

pytestmark = pytest.mark.model

KINDS: list[type[QuantisedLinear]] = [Nf4Linear, GpuInt8Linear]
SCHEMES: tuple[Scheme, ...] = ("gpu-nf4", "gpu-int8")
ASKED = asking(turn(draw((200, 0, 0)), "What colour?"), max_tokens=8)


@pytest.mark.parametrize("outputs", [64, 80, 13])
@pytest.mark.parametrize("rows", [(1,), (2, 7), (600,)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_weights_near_the_true_ones(
    kind: type[QuantisedLinear], rows: tuple[int, ...], outputs: int
) -> None:
    torch.manual_seed(0)
    weight, bias, values = torch.randn(outputs, 96) * 0.1, torch.randn(outputs), torch.randn(*rows, 96)
    made = filled(kind, weight, bias)
    assert error(made.widen(), weight) < (0.11 if kind is Nf4Linear else 0.015)
    wanted = values @ made.widen().t() + bias
    made.settle()
    assert made(values).shape == wanted.shape
    assert error(made(values), wanted) < (1e-5 if kind is Nf4Linear else 0.015)
    made.bias = None
    half = made(values.bfloat16())
    assert half.dtype == torch.bfloat16
    assert error(half.float(), wanted - bias) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_alike_in_one_piece_and_in_several(
    kind: type[QuantisedLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(200, 96)
    whole = filled(kind, weight)
    monkeypatch.setattr("onsight.engines.torch_engine.quantize._AT_ONCE", 96 * 64)
    made = filled(kind, weight)
    assert torch.equal(made.packed, whole.packed)
    assert torch.equal(made.scales, whole.scales)


def test_8_bits_add_up_alike_whoever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    made, values = filled(GpuInt8Linear, torch.randn(192, 128)), torch.randn(40, 128)
    values[3] *= 1000
    assert all(torch.equal(made(values[row : row + 1]), made(values)[row : row + 1]) for row in range(40))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_family_answers_from_what_the_estimate_counts(
    family: Tiny, scheme: Scheme, start: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are nearer to whole weights' than those of other weights could be."""
    linears: list[QuantisedLinear] = []
    held: dict[int, int] = {}

    def keep(model: nn.Module) -> None:
        linears.extend(part for part in model.modules() if isinstance(part, QuantisedLinear))
        held.update({id(one): one.nbytes for one in model.state_dict(keep_vars=True).values()})

    checkpoint = Checkpoint(family.folder, torch.device("cpu"), torch.float32, scheme=scheme, keep=keep)
    load_family(find_card("tiny", family.folder).family, checkpoint, Vocabulary(family.folder))
    assert {type(part) for part in linears} == ({Nf4Linear, GpuInt8Linear} if scheme == "gpu-nf4" else {GpuInt8Linear})
    beside = sum(8 * part.out_features for part in linears if isinstance(part, GpuInt8Linear))
    assert weight_bytes(family.folder, torch.float32, scheme) == pytest.approx(sum(held.values()) + beside, rel=0.02)
    true = await answer(await start(family.folder), ASKED)
    monkeypatch.setattr("onsight.engines.torch_engine.engine.pick_scheme", lambda *others: scheme)
    few = await answer(await start(family.folder), replace(ASKED, sampling=replace(ASKED.sampling)))
    assert true.seen is not None
    assert few.seen is not None
    assert 0 < error(few.seen.logits[0], true.seen.logits[0]) < (0.5 if scheme == "gpu-nf4" else 0.1)


def test_the_size_is_known_before() -> None:
    made = Nf4Linear({"one": 64}, 128, None)
    assert made.packed.nbytes + made.scales.nbytes == packed_bytes("gpu-nf4", 64, 128)
