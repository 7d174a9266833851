"""Matrix products with a model's weights, laid out for the processor that runs them.

On an x86 CPU oneDNN's kernels take weights in blocks of their own; PyTorch's plain product keeps rows, and copies them
into blocks again at every call of several rows. See docs/decisions/0007-fused-layers.md for what that costs.
"""

from __future__ import annotations

import torch
from torch import nn

from onsight.engines.torch_engine.quantize import HalfLinear, QuantisedLinear

AnyLinear = nn.Linear | QuantisedLinear | HalfLinear
"""A product of a model that was read: plain, or held in few bits."""
_VECTOR_CAPABILITIES = ("AVX2", "AVX512")
"""The processors, by PyTorch's names, on which blocks were measured to be faster."""
_NUMBERS = (torch.float32, torch.bfloat16)


class BlockedLinear(nn.Module):
    """What `nn.Linear` does, on a CPU, with the weight stored in oneDNN's blocks. Inference only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight`: [out, in]. It is copied, so that the caller may let go of it."""
        super().__init__()
        self._blocks: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, self._blocks, self._bias, "none", [], "")
        return product


class RowLinear(nn.Module):
    """What `nn.Linear` does, for a weight that is no parameter. Inference only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight`: [out, in]."""
        super().__init__()
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return nn.functional.linear(values, self._weight, self._bias)


def product(linear: AnyLinear) -> nn.Module:
    """[..., in] -> [..., out] as `linear` does it, in the layout that suits its device."""
    return _laid_out(linear.weight, linear.bias) if isinstance(linear, nn.Linear) else linear


def joined(*linears: AnyLinear) -> nn.Module:
    """One product in place of several with the same input: [..., in] -> [..., all their outputs, in order].

    Those that are held in few bits were joined before they were read.
    """
    if len(linears) == 1:
        return product(linears[0])
    plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
    if len(plain) < len(linears):
        raise ValueError("products of few bits are joined when they are made, and not afterwards")
    biases: list[torch.Tensor] = [linear.bias for linear in plain if linear.bias is not None]
    if len(biases) not in (0, len(linears)):
        raise ValueError("some of the products to be joined have a bias, and some have none")
    return _laid_out(torch.cat([linear.weight for linear in plain]), torch.cat(biases) if biases else None)


def store_in_blocks(module: nn.Module) -> None:
    """Lay out the weights of every `nn.Linear` inside `module` to suit its device."""
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.Linear):
            store_in_blocks(child)
        elif _blocks_suit(child.weight):
            module.add_module(name, BlockedLinear(child.weight, child.bias))


def _laid_out(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    return BlockedLinear(weight, bias) if _blocks_suit(weight) else RowLinear(weight, bias)


def _blocks_suit(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in _NUMBERS
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() in _VECTOR_CAPABILITIES
    )
