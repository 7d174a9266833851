"""Keys and values of every slot, and the windows through which a forward sees some of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from onsight.core.errors import StartError
from onsight.engines.machine import free_memory
from onsight.engines.torch_engine.families.key_values import KeyValueShape, Sight
from onsight.engines.torch_engine.picture_cache import PictureCache
from onsight.engines.torch_engine.settings import TorchSettings

log = logging.getLogger(__name__)

_SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.5, "mps": 0.5}
"""How much of the free memory keys and values may take; on a CPU the rest of the machine lives there too."""
_SHORTEST_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class KeyValueSize:
    """How many slots, and how many tokens each holds."""

    slots: int
    tokens: int


def fit(
    shape: KeyValueShape, longest: int, settings: TorchSettings, device: torch.device, dtype: torch.dtype
) -> KeyValueSize:
    """The cache's size under `settings` for a checkpoint made for `longest` tokens.

    A context that nobody asked for is lowered until it fits; one that was asked for fits or raises StartError.
    """
    tokens = settings.max_model_len or longest
    if tokens > longest:
        raise StartError(f"max_model_len is {tokens}, but the model was made for {longest} tokens")
    bytes_a_token = token_bytes(shape, dtype)
    beside = settings.max_num_seqs * (shape.cross.pictures if shape.cross else 0) * beside_bytes(shape, dtype)
    room = settings.kv_cache_tokens
    if room is None:
        room = max(0, int(free_bytes(device) * _SHARE_OF_FREE[device.type]) - beside) // bytes_a_token
    if tokens * settings.max_num_seqs <= room:
        return KeyValueSize(settings.max_num_seqs, tokens)
    each = room // settings.max_num_seqs
    if settings.max_model_len is not None or each < min(_SHORTEST_CONTEXT, longest):
        need = tokens * settings.max_num_seqs
        raise StartError(
            f"keys and values of {settings.max_num_seqs} requests of {tokens} tokens need {need} places"
            f" ({need * bytes_a_token / 2**30:.2f} GiB), but there is room for {room}"
            f" ({room * bytes_a_token / 2**30:.2f} GiB"
            + (f" beside {beside / 2**30:.2f} GiB for their pictures" if beside else "")
            + "): lower max_num_seqs or max_model_len"
        )
    log.info(
        "context lowered from %d to %d tokens, so that %d requests fit in memory", tokens, each, settings.max_num_seqs
    )
    return KeyValueSize(settings.max_num_seqs, each)


def token_bytes(shape: KeyValueShape, dtype: torch.dtype) -> int:
    """What the keys and values of one token take."""
    return 2 * shape.layers * shape.heads * shape.dim * dtype.itemsize


def beside_bytes(shape: KeyValueShape, dtype: torch.dtype) -> int:
    """What one picture takes in cross-attention layers, aside from the tokens of its prompt."""
    cross = shape.cross
    return 2 * cross.layers * shape.heads * shape.dim * cross.tokens * dtype.itemsize if cross else 0


def free_bytes(device: torch.device) -> int:
    """Memory that is free on `device`: of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


class KeyValueCache:
    """[layers, 2, slots, heads, tokens, dim]; what lies past a slot's computed tokens is stale or zero, never NaN."""

    def __init__(self, shape: KeyValueShape, size: KeyValueSize, device: torch.device, dtype: torch.dtype) -> None:
        """Raises StartError when the memory cannot be had."""
        dims = (shape.layers, 2, size.slots, shape.heads, size.tokens, shape.dim)
        cross = shape.cross
        self.pictures: PictureCache | None = None
        try:
            self._store = _zeros(dims, device, dtype)
            if cross is not None:
                places = cross.pictures * cross.tokens
                seen = _zeros((cross.layers, 2, size.slots, shape.heads, places, shape.dim), device, dtype)
                self.pictures = PictureCache(seen, cross)
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, its OutOfMemoryError among them
            raise StartError(f"no memory for keys and values of {size.slots} x {size.tokens} tokens: {error}") from None
        self.size = size
        self.keys = [self._store[layer, 0] for layer in range(shape.layers)]  # [slots, heads, tokens, dim] each
        self.values = [self._store[layer, 1] for layer in range(shape.layers)]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of one slot to another, and with them the pictures that they saw."""
        self._store[:, :, target, :, :tokens] = self._store[:, :, source, :, :tokens]
        if self.pictures is not None:
            self.pictures.copy(source, target)


def _zeros(dims: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(dims, device=device, dtype=dtype)
    # numpy's zeros are pages that the system maps when they are first written: an idle slot costs no memory.
    count = int(numpy.prod(dims, dtype=numpy.int64)) * dtype.itemsize
    return torch.from_numpy(numpy.zeros(count, numpy.uint8)).view(dtype).view(dims)


class PrefillWindow:
    """Some slots, each with a run of new tokens; rows are padded on the right to the longest run."""

    def __init__(
        self, cache: KeyValueCache, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        self._cache = cache
        self.sight: Sight | None = None
        self._rows = list(zip(slots, starts, counts, strict=True))
        self.slots = _as_index(slots)
        self._seen = max(start + count for _, start, count in self._rows)
        # Nothing came before: the new keys are all that there is to see, and plain causal attention hides the padding.
        self._fresh = not any(starts)

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """[rows, 1, longest run, seen], True where a query may look; None when plain causal attention is right."""
        if self._fresh:
            return None
        longest = max(count for _, _, count in self._rows)
        starts = torch.tensor([start for _, start, _ in self._rows], device=device)
        queries = starts[:, None] + torch.arange(longest, device=device)  # [rows, longest]
        return (torch.arange(self._seen, device=device) <= queries[:, :, None])[:, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `KeyValues.update`."""
        all_keys, all_values = self._cache.keys[layer], self._cache.values[layer]
        for row, (slot, start, count) in enumerate(self._rows):
            all_keys[slot, :, start : start + count] = keys[row, :, :count]
            all_values[slot, :, start : start + count] = values[row, :, :count]
        if self._fresh:
            return keys, values
        return all_keys[self.slots, :, : self._seen], all_values[self.slots, :, : self._seen]


class DecodeWindow:
    """The slots from the first live one to the last, one new token each; dead slots between are computed and ignored.

    So the cache is a view and never copied; a dead row costs less than a gather of every live row's keys and values.
    """

    def __init__(
        self, cache: KeyValueCache, slots: Sequence[int], positions: Sequence[int], device: torch.device
    ) -> None:
        """`slots` ascend; `positions` are where their new tokens go."""
        self._cache = cache
        self.sight: Sight | None = None
        self.first, self.stop = slots[0], slots[-1] + 1
        self._dense = len(slots) == self.stop - self.first
        self._seen = max(positions) + 1
        self.rows = torch.tensor([slot - self.first for slot in slots], device=device)
        self._slots = self.rows + self.first
        self._positions = torch.tensor(positions, device=device)

    def mask(self) -> torch.Tensor | None:
        """[rows, 1, 1, seen], True where a query may look; None when all see everything."""
        device = self.rows.device
        if self.stop - self.first == 1:
            return None
        last = torch.zeros(self.stop - self.first, dtype=torch.int64, device=device)
        last[self.rows] = self._positions
        return (torch.arange(self._seen, device=device) <= last[:, None])[:, None, None]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[..., live] -> [..., rows], zero for dead rows."""
        if self._dense:
            return values
        spread = values.new_zeros((*values.shape[:-1], self.stop - self.first))
        spread[..., self.rows] = values
        return spread

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `KeyValues.update`."""
        all_keys, all_values = self._cache.keys[layer], self._cache.values[layer]
        if not self._dense:
            keys_live, values_live = keys[self.rows], values[self.rows]
        else:
            keys_live, values_live = keys, values
        all_keys[self._slots, :, self._positions] = keys_live[:, :, 0]
        all_values[self._slots, :, self._positions] = values_live[:, :, 0]
        window = slice(self.first, self.stop)
        return all_keys[window, :, : self._seen], all_values[window, :, : self._seen]


def _as_index(slots: Sequence[int]) -> slice | list[int]:
    """A slice where the slots are neighbours in order, for then indexing is a view and no copy."""
    first, stop = slots[0], slots[-1] + 1
    return slice(first, stop) if list(slots) == list(range(first, stop)) else list(slots)
