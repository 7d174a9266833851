"""One layer of a Llama, Qwen2.5 or Phi-3 decoder, computed with few and large products."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from onsight.engines.torch_engine.families.key_values import KeyValues
from onsight.engines.torch_engine.families.product import AnyLinear, joined, product


class FusedLayer(nn.Module):
    """What transformers' decoder layer computes, from its own weights. Inference only.

    For layers that norm before attention and before a gated product, turn queries and keys by rotary angles, and let
    every token see all that came before it.
    """

    def __init__(self, layer: nn.Module, key_value_heads: int, dim: int, place: int) -> None:
        """`layer`: one of transformers', whose weights are copied; `place`: its number in the key-value cache.

        Raises AttributeError for a layer that is built otherwise.
        """
        super().__init__()
        attention, gated = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        self._into_heads = _join(attention, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
        self._into_gate = _join(gated, "gate_up_proj", ("gate_proj", "up_proj"))
        from_heads, down = _linear(attention, "o_proj"), _linear(gated, "down_proj")
        self._from_heads, self._down = product(from_heads), product(down)
        self._heads = (from_heads.in_features // dim, key_value_heads, key_value_heads)
        self._dim = dim
        self._place = place
        self._first_norm = layer.get_submodule("input_layernorm")
        self._second_norm = layer.get_submodule("post_attention_layernorm")
        self._activate = next(part for part in gated.children() if not isinstance(part, AnyLinear))

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        key_values: KeyValues,
    ) -> torch.Tensor:
        """See `Decoder.forward`; `rotary`: cosines and sines [rows, 1, tokens, turned], the sines with `signed`."""
        heads = self._into_heads(self._first_norm(hidden)).unflatten(-1, (-1, self._dim)).transpose(1, 2)
        turning, values = heads[:, : -self._heads[2]], heads[:, -self._heads[2] :]  # queries and keys turn alike
        turned = turn(turning, rotary)
        queries, keys = turned[:, : self._heads[0]], turned[:, self._heads[0] :]
        keys, values = key_values.update(keys, values, self._place)
        seen = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None and hidden.shape[1] > 1, enable_gqa=True
        )
        hidden = hidden + self._from_heads(seen.transpose(1, 2).flatten(2))
        gate, up = self._into_gate(self._second_norm(hidden)).chunk(2, dim=-1)
        gated: torch.Tensor = hidden + self._down(self._activate(gate) * up)
        return gated


def signed(cosines: torch.Tensor, sines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles of `turn` from transformers' [rows, tokens, turned]: [rows, 1, tokens, turned], half of the sines negated.

    So that a turn needs no negation of its own in any layer.
    """
    half = sines.shape[-1] // 2
    sines = torch.cat((-sines[..., :half], sines[..., half:]), dim=-1)
    return cosines[:, None], sines[:, None]


def turn(heads: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[rows, heads, tokens, dim] turned by `signed` angles; dims past theirs stay as they are."""
    cosines, sines = rotary
    turned = cosines.shape[-1]
    turning = heads[..., :turned]
    first, second = turning.chunk(2, dim=-1)
    result = torch.addcmul(turning * cosines, torch.cat((second, first), dim=-1), sines)
    return result if turned == heads.shape[-1] else torch.cat((result, heads[..., turned:]), dim=-1)


def _join(parent: nn.Module, whole: str, parts: tuple[str, ...]) -> nn.Module:
    """The product of `parts` side by side; some checkpoints hold it as one `whole` already."""
    names = {name for name, _ in parent.named_children()}
    return joined(*(_linear(parent, name) for name in ((whole,) if whole in names else parts)))


def _linear(parent: nn.Module, name: str) -> AnyLinear:
    found = parent.get_submodule(name)
    if not isinstance(found, AnyLinear):
        raise AttributeError(f"{name} is a {type(found).__name__}, not a Linear")
    return found
