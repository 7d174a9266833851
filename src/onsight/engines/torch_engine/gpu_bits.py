"""Weights in 4 or 8 bits on an NVIDIA GPU, by the kernels of the package bitsandbytes.

No GPU has run this yet. Its tests run on a CPU, for which the package has operations of the same names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from onsight.core.errors import StartError
from onsight.engines.torch_engine.quantize import Int8Linear, QuantisedLinear, group_of


def require_package() -> None:
    """Raises StartError where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise StartError(
            "weights of few bits on a GPU need the package bitsandbytes: pip install 'onsight[gpu-bits]', or choose"
            " --quantize none"
        )


class Nf4Linear(QuantisedLinear):
    """Four bits a weight, which name one of 16 numbers that lie as normal ones do; a group of inputs shares a scale.

    `packed`: [out * in / 2, 1] bytes; `scales`: [out * in / group] float32.
    """

    def __init__(self, parts: Mapping[str, int], width: int, bias: torch.dtype | None) -> None:
        super().__init__(parts, width, bias)
        group = group_of(width)
        if group is None:
            raise ValueError(f"a width of {width} has no group that divides it")
        self._group = group
        numbers = self.out_features * width
        self.register_buffer("packed", torch.empty(numbers // 2, 1, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(numbers // group, dtype=torch.float32))
        self._states: dict[torch.dtype, object] = {}

    def _round(self, weight: torch.Tensor, start: int) -> None:
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.to(self.packed.device), blocksize=self._group, quant_type="nf4")
        first = start * self.in_features
        self.packed[first // 2 :][: len(packed)] = packed
        self.scales[first // self._group :][: len(state.absmax)] = state.absmax

    def widen(self) -> torch.Tensor:
        """The weight as it is after rounding: [out, in], float32."""
        from bitsandbytes.functional import dequantize_4bit

        wide: torch.Tensor = dequantize_4bit(self.packed, self._state(torch.float32))
        return wide

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        from bitsandbytes import matmul_4bit

        rows = values.reshape(-1, self.in_features)
        product: torch.Tensor = matmul_4bit(rows, self.packed, self._state(values.dtype), bias=self.bias)
        return product.view(*values.shape[:-1], self.out_features)

    def _state(self, dtype: torch.dtype) -> object:
        """What the package's operations are told of `packed`; they work in `dtype`."""
        from bitsandbytes.functional import QuantState, get_4bit_type

        if dtype not in self._states:
            shape = torch.Size((self.out_features, self.in_features))
            numbers = get_4bit_type("nf4", device=self.packed.device)
            self._states[dtype] = QuantState(
                self.scales, shape=shape, code=numbers, blocksize=self._group, quant_type="nf4", dtype=dtype
            )
        return self._states[dtype]


class GpuInt8Linear(Int8Linear):
    """`Int8Linear` with the package's sums of bytes, which are whole numbers too; the weight stays as it is stored."""

    def _round(self, weight: torch.Tensor, start: int) -> None:
        super()._round(weight.to(self.packed.device), start)

    def settle(self) -> None:
        """Nothing is laid out anew."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        from bitsandbytes.functional import int8_linear_matmul

        rows = values.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 127
        sums = int8_linear_matmul((rows / scale).round_().to(torch.int8), self.packed)
        product: torch.Tensor = (sums.float() * scale * self.scales).to(values.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*values.shape[:-1], self.out_features)
