"""Keys and values of each slot's pictures, for families whose text sees them by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onsight.engines.torch_engine.families.key_values import CrossShape, PictureLayer, Sight


class PictureCache:
    """A request's pictures lie in its slot in order, each with all the places of its tiles, padding tiles included."""

    def __init__(self, store: torch.Tensor, shape: CrossShape) -> None:
        """`store`: [layers, 2, slots, heads, pictures x tiles x patches, dim], zeros."""
        self._store = store
        self._shape = shape
        self._used = [0] * store.shape[2]

    def write(self, slot: int, place: int, made: torch.Tensor) -> None:
        """Put picture number `place` of the slot's request there: `made` is [layers, 2, heads, tokens, dim]."""
        start = place * self._shape.tokens
        self._used[slot] = start + self._shape.tokens
        self._store[:, :, slot, :, start : self._used[slot]] = made

    def clear(self, slot: int) -> None:
        """A request begins in the slot: nothing there is its own yet."""
        self._used[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """The target's request shows the same pictures as the source's."""
        used = self._used[target] = self._used[source]
        self._store[:, :, target, :, :used] = self._store[:, :, source, :, :used]

    def look(self, slots: slice | list[int], seen: Sequence[torch.Tensor | None], tokens: int) -> Sight | None:
        """What rows of `tokens` tokens in `slots` see; None when no row has pictures.

        `seen`: for each row [its tokens, its tiles], True where a token sees a tile; None for a row without pictures.
        A token that sees no tile stands before the first picture. transformers lets it attend to every place of its own
        request, padding tiles included, and to nothing of a longer neighbour's: so do we.
        """
        tiles = max((0 if one is None else one.shape[1] for one in seen), default=0)
        if tiles == 0:
            return None
        mask = torch.zeros(len(seen), tokens, tiles, dtype=torch.bool)
        told = torch.ones(len(seen), tokens, dtype=torch.bool)
        for row, one in enumerate(seen):
            if one is None:
                mask[row, :, 0] = True  # what this row makes of it is thrown away; softmax needs something to see
                continue
            mask[row, : len(one), : one.shape[1]] = one
            told[row] = mask[row].any(dim=-1)
            mask[row, ~told[row], : one.shape[1]] = True
        device, dtype = self._store.device, self._store.dtype
        pictured = torch.tensor([one is not None for one in seen])
        places = tiles * self._shape.patches
        return Sight(
            layers=tuple(
                PictureLayer(keys[slots, :, :places], values[slots, :, :places]) for keys, values in self._store
            ),
            mask=None if tokens == 1 and mask.all() else self._spread(mask.to(device)),
            told=None if told.all() else told[:, None, :, None].to(device, dtype),
            rows=None if pictured.all() else pictured[:, None, None].to(device),
        )

    def _spread(self, mask: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, tiles] -> [rows, 1, tokens, tiles x patches]."""
        return mask.repeat_interleave(self._shape.patches, dim=-1)[:, None]
