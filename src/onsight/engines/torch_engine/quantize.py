"""Weights in 4 or 8 bits on a CPU: how numbers are rounded, and the products that read them so; GPUs': gpu_bits.py.

See docs/decisions/0018-few-bits.md for the choices, docs/results/int4.md for what they cost in answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

import torch
from torch import nn

Scheme = Literal["int4", "int8", "gpu-nf4", "gpu-int8"]
ON_GPU: Mapping[Scheme, Scheme] = {"int4": "gpu-nf4", "int8": "gpu-int8"}
"""What stands on a GPU for what is asked for; what is stored is for CPUs."""

_GROUPS = (128, 64, 32)
"""Inputs that share a scale and an offset: as many as divide the width, of those that PyTorch's kernel knows."""
_BLOCK = 64
"""Outputs are filled up to a multiple of this, which every layout of the kernel divides."""
_AT_ONCE = 1 << 23
"""Weights that are rounded at a time: their float32 copies take some hundred megabytes."""
_WIDENED = 1 << 20
"""Weights that are made wide at a time: four megabytes."""
_MANY = 512
"""From so many rows on, a float32 product with weights made wide is as fast as the kernel, or faster."""
INT8_BESIDE = 8
"""Bytes that oneDNN wants of every output, besides its weights and its scale."""
_ZERO_POINT = 128
"""oneDNN takes inputs as unsigned bytes: this stands for 0."""


def group_of(width: int) -> int | None:
    """How many inputs share a scale; None where no group divides `width`, whose weights then stay as they are."""
    return next((group for group in _GROUPS if width % group == 0), None)


def int8_is_exact() -> bool:
    """Whether the processor adds up products of bytes without cutting them (VNNI); older ones saturate at 16 bits."""
    return bool(torch.cpu._is_vnni_supported())


def packed_bytes(scheme: Scheme, outputs: int, width: int) -> int:
    """What a weight [outputs, width] takes in memory, but for what blocks are filled up with."""
    if scheme in ("int8", "gpu-int8"):
        return outputs * (width + 4 + INT8_BESIDE)
    return outputs * width // 2 + outputs * width // (group_of(width) or width) * 4


def count_weights(module: nn.Module) -> int:
    """Numbers in `module`, however many bits each has."""
    quantised = [part for part in module.modules() if isinstance(part, QuantisedLinear)]
    return sum(weight.numel() for weight in module.parameters()) + sum(
        part.in_features * part.out_features for part in quantised
    )


class QuantisedLinear(nn.Module, ABC):
    """What `nn.Linear` does, with a weight of few bits; it may stand for several with the same input. Inference only.

    `packed` and `scales` are what is kept and stored.
    """

    packed: torch.Tensor
    scales: torch.Tensor

    def __init__(self, parts: Mapping[str, int], width: int, bias: torch.dtype | None) -> None:
        """`bias`: the format of the bias, None for none."""
        super().__init__()
        self.parts = dict(parts)
        self.in_features, self.out_features = width, sum(parts.values())
        self.bias = None if bias is None else nn.Parameter(torch.empty(self.out_features, dtype=bias), False)
        self._waiting: dict[str, torch.Tensor] = {}

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Which outputs are each part's."""
        start = 0
        for name, rows in self.parts.items():
            yield name, slice(start, start + rows)
            start += rows

    def take(self, part: str, weight: torch.Tensor) -> None:
        """`weight`: [the part's outputs, in], in any number format; all are rounded once the last one has come."""
        self._waiting[part] = weight
        if len(self._waiting) < len(self.parts):
            return
        rows = self._rows_at_once
        whole = torch.cat([self._waiting[name] for name in self.parts]) if len(self.parts) > 1 else weight
        self._waiting = {}
        for start in range(0, self.out_features, rows):
            self._round(whole[start : start + rows].float(), start)

    @property
    def _rows_at_once(self) -> int:
        """So many outputs, whole blocks, are about `_AT_ONCE` weights."""
        return max(1, _AT_ONCE // (self.in_features * _BLOCK)) * _BLOCK

    def settle(self) -> None:
        """Lay the weight out for the processor, once it is whole; it can be stored no more."""

    @abstractmethod
    def _round(self, weight: torch.Tensor, start: int) -> None:
        """Fill in the outputs from `start` on. `weight`: [outputs, in], float32."""


class Int4Linear(QuantisedLinear):
    """Four bits a weight; each group of inputs has a scale and an offset of 16 bits for every output.

    `packed`: [filled outputs, in / 2] bytes in the kernel's own order; `scales`: [groups, filled outputs, 2] bfloat16.
    Inputs and outputs are rounded to bfloat16, by whichever product.
    """

    def __init__(self, parts: Mapping[str, int], width: int, bias: torch.dtype | None) -> None:
        super().__init__(parts, width, bias)
        group = group_of(width)
        if group is None:
            raise ValueError(f"a width of {width} is no multiple of {_GROUPS[-1]}")
        self._group = group
        filled = -(-self.out_features // _BLOCK) * _BLOCK
        self.register_buffer("packed", torch.empty(filled, width // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(width // group, filled, 2, dtype=torch.bfloat16))

    def _round(self, weight: torch.Tensor, start: int) -> None:
        rows = len(weight)
        weight = nn.functional.pad(weight, (0, 0, 0, -rows % _BLOCK))
        stop = start + len(weight)
        grouped = weight.view(len(weight), -1, self._group)  # [outputs, groups, group]
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-10).bfloat16().float()
        offset = (low + 8 * scale).bfloat16().float()  # the kernel counts from -8
        codes = ((grouped - offset) / scale).round_().add_(8).clamp_(0, 15)
        self.packed[start:stop] = _pack(codes.flatten(1).to(torch.int32))
        self.scales[:, start:stop] = torch.cat([scale, offset], -1).transpose(0, 1).bfloat16()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        rows = values.reshape(-1, self.in_features).bfloat16()
        if len(rows) < _MANY:
            made: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self._group, self.scales)
        else:
            made = self._widened(rows.float())
        product = made[:, : self.out_features].to(values.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*values.shape[:-1], self.out_features)

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, filled outputs] by weights made wide, a few blocks of outputs at a time.

        Rounded as the kernel rounds, so that it changes no answer who else is read at the same time.
        """
        layout, width = _layout(), self.in_features
        blocks = self.packed.view(-1, width, layout.block // 2)
        filled = len(self.packed)
        made = torch.empty(len(rows), filled, dtype=torch.bfloat16)
        step = max(1, _WIDENED // (width * layout.block))
        for first in range(0, len(blocks), step):
            some = blocks[first : first + step].transpose(0, 1)  # [in, blocks, bytes]
            outputs = slice(first * layout.block, (first + some.shape[1]) * layout.block)
            codes = layout.unpack(some).view(-1, self._group, outputs.stop - outputs.start)
            scale, offset = self.scales[:, None, outputs].float().unbind(-1)
            weight = torch.addcmul(offset - 8 * scale, codes, scale).flatten(0, 1)  # [in, outputs]
            made[:, outputs] = rows @ weight
        return made

    def widen(self) -> torch.Tensor:
        """The weight as it is after rounding: [out, in], float32."""
        layout = _layout()
        codes = layout.unpack(self.packed.view(-1, self.in_features, layout.block // 2).transpose(0, 1))
        scale, offset = self.scales[:, None].float().unbind(-1)
        whole = (codes.view(-1, self._group, len(self.packed)) - 8) * scale + offset
        return whole.flatten(0, 1).t()[: self.out_features]

    def rearrange(self, order: str) -> None:
        """Bring `packed` from the order of another processor's kernel, as `packed_order` named it, into this one's."""
        block, _, neighbours = order.partition("-")
        layout = Layout(int(block), bool(neighbours))
        for start in range(0, len(self.packed), self._rows_at_once):
            rows = self.packed[start : start + self._rows_at_once]
            codes = layout.unpack(rows.view(-1, self.in_features, layout.block // 2).transpose(0, 1))
            rows.copy_(_pack(codes.flatten(1).t().to(torch.int32).contiguous()))


class Int8Linear(QuantisedLinear):
    """Eight bits a weight with a scale for every output, and eight bits an input with a scale for every row.

    `packed`: [out, in] int8 until it is settled in oneDNN's blocks; `scales`: [out] float32. Where oneDNN's sums would
    not be exact, the weight is made wide instead: a saved head can come from another processor.
    """

    _wide: torch.Tensor | None = None

    def __init__(self, parts: Mapping[str, int], width: int, bias: torch.dtype | None) -> None:
        super().__init__(parts, width, bias)
        self.register_buffer("packed", torch.empty(self.out_features, width, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(self.out_features, dtype=torch.float32))
        self._blocks: torch.Tensor | None = None

    def _round(self, weight: torch.Tensor, start: int) -> None:
        stop = start + len(weight)
        scale = weight.abs().amax(-1).clamp_min(1e-10) / 127
        self.packed[start:stop] = (weight / scale[:, None]).round_().to(torch.int8)
        self.scales[start:stop] = scale

    def settle(self) -> None:
        """See `QuantisedLinear.settle`."""
        if self.packed.device.type == "meta":
            return
        if not int8_is_exact():
            self._wide = self.widen()
        else:
            self._blocks = torch.ops.onednn.qlinear_prepack(self.packed, [1, self.in_features])
            self._no_offsets = torch.zeros(self.out_features, dtype=torch.int64)
        self.packed = self.packed.to("meta")

    def widen(self) -> torch.Tensor:
        """The weight as it is after rounding, before it is settled: [out, in], float32."""
        return self.packed * self.scales[:, None]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]. A row's sum is one of whole numbers: no other row has a part in it."""
        if self._wide is not None:
            return nn.functional.linear(values.float(), self._wide, self.bias).to(values.dtype)
        rows = values.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 127
        codes = (rows / scale).round_().add_(_ZERO_POINT).to(torch.uint8)
        made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, _ZERO_POINT, self._blocks, self.scales, self._no_offsets, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        product = made.mul_(scale).to(values.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*values.shape[:-1], self.out_features)


class HalfLinear(nn.Module):
    """What `nn.Linear` does in float32, from a weight that is kept in the 16 bits it was stored in: nothing is lost.

    For parts that read many rows at once, where making the weight wide costs little beside the product.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        """`linear`: whose place it takes; its weight's numbers are not taken over."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, dtype=dtype), False)
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return nn.functional.linear(values, self.weight.to(values.dtype), self.bias)


class HalfEmbedding(nn.Module):
    """What `nn.Embedding` does in float32, from the 16 bits that it was stored in."""

    def __init__(self, embedding: nn.Embedding, dtype: torch.dtype) -> None:
        """`embedding`: whose place it takes; its numbers are not taken over."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(embedding.weight, dtype=dtype), False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] -> [..., dim]."""
        return nn.functional.embedding(ids, self.weight).float()


class Layout:
    """In which order PyTorch's kernel holds the codes of `block` outputs; it differs between processors.

    Of two codes in a byte the upper one is the next output's (`neighbours`), else the one half a block further.
    """

    def __init__(self, block: int, neighbours: bool) -> None:
        self.block, self.neighbours = block, neighbours

    def __str__(self) -> str:
        return f"{self.block}{'-neighbours' if self.neighbours else ''}"

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[in, blocks, bytes] -> codes [in, blocks, outputs], float32."""
        width, blocks, half = packed.shape
        shape = (width, blocks, half, 2) if self.neighbours else (width, blocks, 2, half)
        codes = torch.empty(shape)
        lower, upper = codes.unbind(3 if self.neighbours else 2)
        lower.copy_(packed & 15)
        upper.copy_(packed >> 4)
        return codes.view(width, blocks, self.block)


def packed_order() -> str:
    """The name of this processor's order, to be stored beside packed weights."""
    return str(_layout())


@cache
def _layout() -> Layout:
    """Found by packing numbered codes: which order a processor has is written down nowhere but in PyTorch's source."""
    codes = torch.randint(0, 16, (_BLOCK, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = _pack(codes)
    for layout in (Layout(64, False), Layout(32, False), Layout(32, True)):  # AVX-512, AVX2, all others
        unpacked = layout.unpack(packed.view(-1, 2, layout.block // 2).transpose(0, 1))
        if torch.equal(unpacked.flatten(1).t(), codes.float()):
            return layout
    raise RuntimeError("PyTorch packs 4-bit weights in an order that is not known here")


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """[outputs, in] int32 of 0..15 -> [outputs, in / 2] bytes."""
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed
