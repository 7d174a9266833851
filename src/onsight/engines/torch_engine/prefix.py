"""Who holds which slot, and whose keys and values a new request may take over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onsight.engines.torch_engine.prompt import Span

LEAST_REUSE = 16
"""Every prompt begins with the template's first words: copying those few costs more than reading them again."""


@dataclass(slots=True)
class SlotRecord:
    """What a slot's keys and values were computed from: the first `computed` entries of `identity`."""

    identity: list[int] = field(default_factory=list)
    computed: int = 0
    live: bool = False
    used_at: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot for a new request; its first `tokens` positions are to come from slot `source`, which may be itself."""

    slot: int
    source: int
    tokens: int


class SlotBook:
    """A freed slot keeps its keys and values until it is claimed again; the least recently used goes first."""

    def __init__(self, slots: int, least: int = LEAST_REUSE) -> None:
        """`least`: fewest tokens worth taking over."""
        self._records = [SlotRecord() for _ in range(slots)]
        self._least = least
        self._clock = 0

    @property
    def free(self) -> int:
        return sum(not record.live for record in self._records)

    def claim(self, identity: list[int], spans: Sequence[Span]) -> Claim:
        """Take a free slot for a request that reads `identity`; there must be one.

        The reused prefix ends before the last token (whose logits are wanted) and never inside a picture.
        """
        source, tokens = self._longest_prefix(identity, spans)
        slot = self._free_slot(source, tokens)
        self._clock += 1
        self._records[slot] = SlotRecord(identity, tokens, True, self._clock)
        return Claim(slot, source, tokens)

    def _longest_prefix(self, identity: list[int], spans: Sequence[Span]) -> tuple[int, int]:
        best = (0, 0)
        for slot, record in enumerate(self._records):
            tokens = _shared(identity, record.identity, min(record.computed, len(identity) - 1))
            tokens = min([span.start for span in spans if span.start < tokens < span.stop], default=tokens)
            if tokens > best[1] and tokens >= self._least:
                best = (slot, tokens)
        return best

    def _free_slot(self, source: int, tokens: int) -> int:
        """The source itself when all of it is reused, else the least recently used, the source last."""
        record = self._records[source]
        if tokens and not record.live and tokens == record.computed:
            return source
        free = [slot for slot, record in enumerate(self._records) if not record.live]
        return min(free, key=lambda slot: (tokens > 0 and slot == source, self._records[slot].used_at))

    def extend(self, slot: int, computed: int) -> None:
        """The slot now holds keys and values of `computed` entries of its request's identity."""
        self._records[slot].computed = computed

    def release(self, slot: int) -> None:
        """Free a slot. What a failed step half wrote lies past `computed`, so that nobody reads it."""
        self._clock += 1
        record = self._records[slot]
        self._records[slot] = SlotRecord(record.identity[: record.computed], record.computed, False, self._clock)


def _shared(left: list[int], right: list[int], most: int) -> int:
    """How many leading entries agree, at most `most`."""
    if left[:most] == right[:most]:
        return min(most, len(left), len(right))
    return next(place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
