"""Who reads, who writes, who waits: continuous batching over a fixed number of slots."""

from __future__ import annotations

from dataclasses import dataclass

from onsight.core.turns import Line
from onsight.engines.torch_engine.prefix import Claim, SlotBook
from onsight.engines.torch_engine.sequence import Chunk, Sequence

PREFILL_TOKENS = 2048
"""Most places (rows x longest run) that one step reads, so that those who already answer wait no longer than that."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: slots to copy, pictures to look at, prompts to read, and answers to go on with (ascending slots)."""

    claims: tuple[Claim, ...]
    look: tuple[Sequence, ...]
    prefill: tuple[Chunk, ...]
    decode: tuple[Sequence, ...]


class Scheduler:
    """Callers share the slots. A sequence waits, then runs in one until it is finished, cancelled or failed."""

    def __init__(self, slots: SlotBook) -> None:
        self.waiting: Line[Sequence] = Line()
        self.running: list[Sequence] = []
        self._slots = slots

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence.caller, sequence)

    def drop_cancelled(self) -> None:
        """Forget every sequence whose caller has left, and free its slot."""
        for sequence in [sequence for sequence in self.waiting if sequence.cancelled]:
            self.waiting.discard(sequence.caller, sequence)
        for sequence in [sequence for sequence in self.running if sequence.cancelled]:
            self.retire(sequence)

    def schedule(self) -> Batch:
        """The next step; empty when nothing runs or waits. Who finds no slot or no budget stays in line."""
        decode = tuple(sorted((one for one in self.running if one.prefilled), key=lambda one: one.slot))
        claims: list[Claim] = []
        while self.waiting and self._slots.free:
            claims.append(self._admit(self.waiting.pop()))
        look: list[Sequence] = []
        chunks: list[Chunk] = []
        for sequence in self.running:
            if sequence.prefilled or sequence.looking:
                continue
            if sequence.unseen():
                sequence.looking = True
                look.append(sequence)
            elif _fits(chunks, sequence):
                chunks.append(_next_chunk(sequence))
        return Batch(tuple(claims), tuple(look), tuple(chunks), decode)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do before something comes in: a request, or what somebody is looking at."""
        return not (self.waiting and self._slots.free) and all(sequence.looking for sequence in self.running)

    def _admit(self, sequence: Sequence) -> Claim:
        claim = self._slots.claim(sequence.prompt.identity, sequence.prompt.spans)
        sequence.slot = claim.slot
        sequence.computed = sequence.cached = claim.tokens
        self.running.append(sequence)
        self.waiting.hold(sequence.caller)
        return claim

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """The sequence's first `tokens` tokens now have keys and values."""
        sequence.computed = tokens
        self._slots.extend(sequence.slot, tokens)

    def retire(self, sequence: Sequence) -> None:
        """The sequence is over; its slot keeps what was computed, for others."""
        self.running.remove(sequence)
        self.waiting.give_back(sequence.caller)
        self._slots.release(sequence.slot)


def _next_chunk(sequence: Sequence) -> Chunk:
    """As much of the unread prompt as one step may read."""
    start = sequence.computed
    return Chunk(sequence, start, min(len(sequence.prompt.token_ids), start + PREFILL_TOKENS))


def _fits(chunks: list[Chunk], sequence: Sequence) -> bool:
    """Whether the sequence's unread prompt may be read beside `chunks`; the first always may, if need be in parts."""
    longest = max([len(sequence.prompt.token_ids) - sequence.computed, *(chunk.stop - chunk.start for chunk in chunks)])
    return not chunks or (len(chunks) + 1) * longest <= PREFILL_TOKENS
