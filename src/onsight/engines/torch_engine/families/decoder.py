"""The language model of a family: transformers' own layers, driven over our key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class KeyValues(Protocol):
    """Where a layer leaves its new keys and values, and gets all that its queries may see."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, kv heads, new, dim] each; returns [rows, kv heads, seen, dim] each."""
        ...


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """What one position costs in the cache."""

    layers: int
    heads: int
    dim: int


class Decoder:
    """Token embedding, layers, final norm and output head of a transformers language model."""

    def __init__(self, text_model: nn.Module, head: nn.Linear, shape: KeyValueShape, axes: int) -> None:
        """`text_model` has transformers' usual parts; `axes`: 1 for plain rotary positions, 3 for Qwen's."""
        self._embed = _module(text_model, "embed_tokens")
        self._layers = list(_module(text_model, "layers").children())
        self._norm = _module(text_model, "norm")
        self._rotary = _module(text_model, "rotary_emb")
        self._head = head
        self.shape = shape
        self.axes = axes

    @property
    def vocab_rows(self) -> int:
        """How many logits there are, which may differ from how many tokens have text."""
        return self._head.out_features

    @property
    def layer_weights(self) -> int:
        """Numbers in one layer."""
        return sum(weight.numel() for weight in self._layers[0].parameters())

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._head.weight.dtype

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[rows, tokens] -> [rows, tokens, hidden]."""
        embedded: torch.Tensor = self._embed(token_ids)
        return embedded

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, key_values: KeyValues
    ) -> torch.Tensor:
        """[rows, tokens, hidden] -> the same, after every layer and the final norm.

        `positions`: [axes, rows, tokens]. `mask`: [rows, 1, tokens, seen], True where a query may look; None is causal.
        """
        rotary = self._rotary(embeds, positions if self.axes > 1 else positions[0])
        hidden = embeds
        for layer in self._layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=key_values, position_embeddings=rotary)
        normed: torch.Tensor = self._norm(hidden)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> [rows, vocab_rows], float32."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()


def _module(parent: nn.Module, name: str) -> nn.Module:
    return parent.get_submodule(name)
