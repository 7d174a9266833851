"""Which parts of an empty model are to be held in few bits, and the places where a checkpoint's tensors then go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from onsight.engines.torch_engine.gpu_bits import GpuInt8Linear, Nf4Linear
from onsight.engines.torch_engine.quantize import (
    ON_GPU,
    HalfEmbedding,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    QuantisedLinear,
    Scheme,
    group_of,
    int8_is_exact,
    packed_order,
)

Decide = Callable[[str, int], Scheme | None]
"""(name of a product, its width) -> how it is to be held; None for as it is."""

HEAD = "lm_head"
WORDS = "embed_tokens"
PACKED, SCALES = ".packed", ".scales"
"""End the names of stored weights of few bits."""
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Number formats of 16 bits, by safetensors' names."""
_LINEARS: Mapping[Scheme, type[QuantisedLinear]] = {
    "int4": Int4Linear,
    "int8": Int8Linear,
    "gpu-nf4": Nf4Linear,
    "gpu-int8": GpuInt8Linear,
}
_PRODUCT = re.compile(r"(^|\.)layers\.\d+\.(self_attn|cross_attn|mlp)\.\w+_proj$")
_SEEING = ("vision", "visual")
"""In the names of towers, whose layers are named as a decoder's: see docs/decisions/0018-few-bits.md."""
_JOINED = (
    ("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("mlp", "gate_up_proj", ("gate_proj", "up_proj")),
)
"""What `FusedLayer` computes with one product."""


class Narrowed:
    """What took the places of a model's own parts: `linears`, the products of few bits by name.

    `parts`: by the name of a plain tensor, the product that it is a part of, and which.
    """

    def __init__(self) -> None:
        self.linears: dict[str, QuantisedLinear] = {}
        self.parts: dict[str, tuple[QuantisedLinear, str]] = {}
        self._tied: tuple[QuantisedLinear, str] | None = None

    def targets(self, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`targets`, the model's tensors by name, as a checkpoint of plain weights holds them: part by part."""
        own = {f"{name}.{kind}" for name in self.linears for kind in ("packed", "scales", "bias")}
        found = {name: tensor for name, tensor in targets.items() if name not in own}
        for linear in self.linears.values():
            for part, rows in linear.spans():
                if linear.bias is not None:
                    found[f"{part}.bias"] = linear.bias.data[rows]
                shape = (rows.stop - rows.start, linear.in_features)
                found[f"{part}.weight"] = torch.empty(shape, device="meta")
        if self._tied is not None:
            found[f"{HEAD}.weight"] = targets[self._tied[1]]
        return found

    def finish(self, targets: Mapping[str, torch.Tensor], order: str | None) -> None:
        """Once the model's tensors `targets` are all read; `order`: how saved ones are packed, None for plain ones."""
        if order is None and self._tied is not None:
            head, words = self._tied
            head.take(HEAD, targets[words])
        for linear in self.linears.values():
            if isinstance(linear, Int4Linear) and order not in (None, packed_order()):
                linear.rearrange(order)

    def settle(self) -> None:
        """Lay every product out for the processor."""
        for linear in self.linears.values():
            linear.settle()

    def replace(self, name: str, linears: Mapping[str, nn.Linear], decide: Decide) -> nn.Module | None:
        """The empty product `name` for `linears`, which have the same input; None where they stay as they are."""
        first = next(iter(linears.values()))
        scheme = decide(name, first.in_features)
        if scheme is None:
            return None
        rows = {part: linear.out_features for part, linear in linears.items()}
        made = _LINEARS[scheme](rows, first.in_features, None if first.bias is None else first.bias.dtype)
        self.linears[name] = made
        self.parts |= {f"{part}.weight": (made, part) for part in rows}
        return made

    def tie(self, words: str) -> None:
        """The head's numbers are those of the embedding whose weight is called `words`."""
        if HEAD in self.linears:
            self._tied = (self.linears[HEAD], words)
            del self.parts[f"{HEAD}.weight"]


def by_rule(scheme: Scheme) -> Decide:
    """Decoders' projections in `scheme`; the output head in 8 bits where the processor has them, for its errors are
    the answer's."""

    def decide(name: str, width: int) -> Scheme | None:
        if group_of(width) is None or any(word in name for word in _SEEING):
            return None
        if name.rpartition(".")[2] == HEAD:
            return "gpu-int8" if scheme in ON_GPU.values() else "int8" if int8_is_exact() else None
        return scheme if _PRODUCT.search(name) else None

    return decide


def as_stored(kinds: Mapping[str, str]) -> Decide:
    """What a checkpoint of ours holds packed; `kinds`: its tensors' number formats as safetensors calls them."""
    held: dict[str, Scheme] = {
        name.removesuffix(PACKED): "int4" if kind == "U8" else "int8"
        for name, kind in kinds.items()
        if name.endswith(PACKED)
    }
    return lambda name, width: held.get(name)


def narrow(model: nn.Module, decide: Decide, kinds: Mapping[str, str], dtype: torch.dtype) -> Narrowed:
    """Put empty products of few bits into the places of `model`'s own.

    `kinds`: the number format of each stored tensor, by the model's name for it. What was stored in 16 bits is kept so
    where `dtype` is wider and it is read by many rows at once, or looked up: none of its numbers changes.
    """
    made = Narrowed()
    tensors = model.state_dict(keep_vars=True)
    words = next((name for name in tensors if name.endswith(f"{WORDS}.weight")), None)
    tied = words is not None and tensors.get(f"{HEAD}.weight") is tensors[words]
    for name, parent in list(model.named_modules()):
        _join(made, decide, model, name)
        for child, part in list(parent.named_children()):
            if isinstance(part, nn.Linear):
                own = f"{name}.{child}".removeprefix(".")
                parent.add_module(child, made.replace(own, {own: part}, decide) or part)
    if tied and words is not None:
        made.tie(words)
    if dtype == torch.float32:
        halves = {id(tensors[name]): HALVES[kind] for name, kind in kinds.items() if kind in HALVES and name in tensors}
        if f"{HEAD}.weight" in tensors and HEAD not in made.linears:
            halves.pop(id(tensors[f"{HEAD}.weight"]), None)
        _halve(model, halves)
    return made


def _join(made: Narrowed, decide: Decide, model: nn.Module, name: str) -> None:
    """Let one product take the place of those that `FusedLayer` would join in the module `name`."""
    above, _, own = name.rpartition(".")
    found = next(((whole, parts) for place, whole, parts in _JOINED if place == own), None)
    if found is None or "self_attn" not in dict(model.get_submodule(above).named_children()):
        return
    whole, parts = found
    parent = model.get_submodule(name)
    children = dict(parent.named_children())
    linears = {f"{name}.{part}": child for part in parts if isinstance(child := children.get(part), nn.Linear)}
    joined = made.replace(f"{name}.{whole}", linears, decide) if len(linears) == len(parts) else None
    if joined is not None:
        parent.add_module(whole, joined)
        for part in parts:
            delattr(parent, part)


def _halve(model: nn.Module, weights: Mapping[int, torch.dtype]) -> None:
    """Keep those weights, by identity, in formats of 16 bits that are a product's or an embedding's."""
    made: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, nn.Linear | nn.Embedding) and id(part.weight) in weights and id(part) not in made:
                dtype = weights[id(part.weight)]
                made[id(part)] = HalfLinear(part, dtype) if isinstance(part, nn.Linear) else HalfEmbedding(part, dtype)
            parent.add_module(name, made.get(id(part), part))
