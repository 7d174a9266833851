"""What a decoder's layers ask of the caches (keys and values, pictures seen from aside), and what those cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


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
