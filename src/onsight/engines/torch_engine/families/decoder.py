"""The language model of a family: transformers' own layers, driven over our key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class PictureLayer:
    """[rows, kv heads, seen, dim] each: what one cross-attention layer sees of every row's own pictures."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sight:
    """What the tokens of a forward see by cross-attention.

    `mask`: [rows, 1, tokens, seen], True where a token may look; None when each row's one token sees everything.
    `told`: [rows, 1, tokens, 1], 0 for words before the first picture, else 1; None when there are no such words.
    `rows`: [rows, 1, 1], True for rows that have pictures; None when all have.
    """

    layers: tuple[PictureLayer, ...]
    mask: torch.Tensor | None
    told: torch.Tensor | None
    rows: torch.Tensor | None


class KeyValues(Protocol):
    """Where a layer leaves its new keys and values, and gets all that its queries may see."""

    @property
    def sight(self) -> Sight | None:
        """For cross-attention layers, where a family has them; None when no row has a picture."""
        ...

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, kv heads, new, dim] each; returns [rows, kv heads, seen, dim] each."""
        ...


@dataclass(frozen=True, slots=True)
class CrossShape:
    """What cross-attention keeps of a request's `pictures`, at most so many, each `tiles` of `patches` places."""

    layers: int
    pictures: int
    tiles: int
    patches: int

    @property
    def tokens(self) -> int:
        """Places for one picture: its tiles, those that only pad it included."""
        return self.tiles * self.patches


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """What one position costs in the cache; `cross`: what pictures cost besides, where text sees them from aside."""

    layers: int
    heads: int
    dim: int
    cross: CrossShape | None = None


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

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """One picture's [tokens, hidden] as keys and values for cross-attention: [layers, 2, kv heads, tokens, dim].

        Asked only of decoders whose shape has `cross`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cross-attention")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> [rows, vocab_rows], float32."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()


def _module(parent: nn.Module, name: str) -> nn.Module:
    return parent.get_submodule(name)
