"""Products of few bits: what their rounded weights give, whoever else is in the batch and however they came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onsight.engines.torch_engine.families.product import joined, product
from onsight.engines.torch_engine.quantize import (
    HalfEmbedding,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    Layout,
    QuantisedLinear,
    count_weights,
    group_of,
    int8_is_exact,
    packed_bytes,
    packed_order,
)

pytestmark = pytest.mark.model

KINDS = [Int4Linear, pytest.param(Int8Linear, marks=pytest.mark.skipif(not int8_is_exact(), reason="needs VNNI"))]
ORDERS = {"64": Layout(64, False), "32": Layout(32, False), "32-neighbours": Layout(32, True)}


def filled(kind: type[QuantisedLinear], weight: torch.Tensor, bias: torch.Tensor | None = None) -> QuantisedLinear:
    made = kind({"one": len(weight)}, weight.shape[1], None if bias is None else bias.dtype)
    made.take("one", weight)
    if made.bias is not None and bias is not None:
        made.bias.data.copy_(bias)
    return made


def error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of all numbers together, beside their size."""
    return float((made - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("width", [32, 96, 128, 576])
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_weights_are_near_the_true_ones(kind: type[QuantisedLinear], width: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(80, width) * 0.1
    made = filled(kind, weight)
    assert made.widen().shape == weight.shape
    assert error(made.widen(), weight) < (0.11 if kind is Int4Linear else 0.015)


def test_a_group_that_is_one_number_is_kept() -> None:
    weight = torch.cat([torch.zeros(16, 64), torch.full((16, 64), 0.5)])
    assert torch.allclose(filled(Int4Linear, weight).widen(), weight, atol=1e-3)


@pytest.mark.parametrize("rows", [(1,), (5,), (2, 7), (600,)])
@pytest.mark.parametrize("outputs", [64, 80, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_rounded_weights(
    kind: type[QuantisedLinear], outputs: int, rows: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight, bias, values = torch.randn(outputs, 96), torch.randn(outputs), torch.randn(*rows, 96)
    made = filled(kind, weight, bias)
    wanted = values @ made.widen().t() + bias
    made.settle()
    assert product(made)(values).shape == wanted.shape
    assert error(made(values), wanted) < (0.005 if kind is Int4Linear else 0.015)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_same_as_among_others(kind: type[QuantisedLinear]) -> None:
    torch.manual_seed(0)
    made, values = filled(kind, torch.randn(192, 128)), torch.randn(40, 128)
    values[3] *= 1000  # nor does it matter how large the others are
    made.settle()
    together = made(values)
    assert all(torch.equal(made(values[row : row + 1]), together[row : row + 1]) for row in range(40))


def test_many_rows_give_what_few_rows_give() -> None:
    """Past some hundred rows the weights are made wide; both ways round alike, but for where a sum's order shows."""
    torch.manual_seed(0)
    made, values = filled(Int4Linear, torch.randn(192, 128)), torch.randn(700, 128)
    few, many = torch.cat([made(some) for some in values.split(100)]), made(values)
    assert (few != many).float().mean() < 0.005
    assert error(many, few) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_parts_stand_side_by_side_in_whatever_order_they_come(kind: type[QuantisedLinear]) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(16, 64), torch.randn(48, 64)
    made = kind({"first": 16, "second": 48}, 64, None)
    made.take("second", second)
    made.take("first", first.bfloat16().float())
    assert dict(made.spans()) == {"first": slice(0, 16), "second": slice(16, 64)}
    whole = filled(kind, torch.cat([first.bfloat16().float(), second]))
    assert torch.equal(made.widen(), whole.widen())
    with pytest.raises(ValueError, match="joined when they are made"):
        joined(made, whole)


@pytest.mark.parametrize("order", ORDERS)
def test_weights_packed_for_another_processor_are_put_into_this_ones_order(order: str) -> None:
    torch.manual_seed(0)
    made = filled(Int4Linear, torch.randn(128, 64))
    wanted, layout = made.widen(), ORDERS[order]
    own = ORDERS[packed_order()].unpack(made.packed.view(-1, 64, ORDERS[packed_order()].block // 2).transpose(0, 1))
    codes = own.flatten(1).t().reshape(-1, layout.block, 64).to(torch.uint8)  # [blocks, outputs, in]
    half = layout.block // 2
    lower, upper = (codes[:, 0::2], codes[:, 1::2]) if layout.neighbours else (codes[:, :half], codes[:, half:])
    made.packed = (lower | upper << 4).transpose(1, 2).reshape(128, 32).contiguous()
    made.rearrange(order)
    assert torch.equal(made.widen(), wanted)
    assert error(made(torch.ones(1, 64)), torch.ones(1, 64) @ wanted.t()) < 0.005


def test_a_width_that_no_group_divides_is_refused() -> None:
    assert [group_of(width) for width in (1536, 576, 96, 100)] == [128, 64, 32, None]
    with pytest.raises(ValueError, match="100 is no multiple of 32"):
        Int4Linear({"one": 64}, 100, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_before(kind: type[QuantisedLinear]) -> None:
    made = filled(kind, torch.randn(128, 96))
    held = made.packed.nbytes + made.scales.nbytes + (8 * 128 if kind is Int8Linear else 0)  # oneDNN's offsets
    assert packed_bytes("int4" if kind is Int4Linear else "int8", 128, 96) == held
    assert count_weights(nn.Sequential(made, nn.Linear(3, 5))) == 128 * 96 + 20


def test_where_sums_of_bytes_would_saturate_eight_bits_are_made_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model of 4 bits has a head of 8, and may come from a processor that adds up bytes."""
    monkeypatch.setattr("onsight.engines.torch_engine.quantize.int8_is_exact", lambda: False)
    torch.manual_seed(0)
    weight, bias, values = torch.randn(48, 96), torch.randn(48), torch.randn(2, 7, 96)
    made = filled(Int8Linear, weight, bias)
    wanted = values @ made.widen().t() + bias
    made.settle()
    torch.testing.assert_close(made(values), wanted)  # of bytes it would be some thousandths off


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_was_stored_in_16_bits_is_exact_in_16_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, table, values = nn.Linear(32, 48), nn.Embedding(20, 32), torch.randn(7, 32)
    for module in (linear, table):
        module.weight.data = module.weight.data.to(dtype).float()
    half, words = HalfLinear(linear, dtype), HalfEmbedding(table, dtype)
    for ours, theirs in ((half, linear), (words, table)):
        ours.weight.data.copy_(theirs.weight)
        assert ours.weight.nbytes == theirs.weight.nbytes / 2
    assert torch.equal(half(values), linear(values))
    assert torch.equal(words(torch.arange(20)), table.weight)
