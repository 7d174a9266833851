"""Turns: who waits is served caller by caller, so that nobody waits behind all that one other has asked for.

Requests cost a hundredfold more or less than one another, and only their end tells how much. So callers do not share
the number of turns but the places themselves: a place that becomes free goes to who holds fewest, max-min fairness. Who
holds each of theirs for long gets fewer turns, and nobody needs to know why.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Line(Generic[Item]):
    """What waits, and how much each caller holds of what it waits for.

    Next is the caller who holds least; who hold alike take turns. What one of them asked for keeps its order.
    """

    def __init__(self) -> None:
        # Dictionaries keep the order in which their keys came, and lose one from the middle at once.
        self._callers: dict[str, dict[Item, None]] = {}
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[Item]:
        """As callers take turns: in the order in which `pop` would give them, if all hold alike all the time."""
        for turn in zip_longest(*self._callers.values()):
            yield from (item for item in turn if item is not None)

    def add(self, caller: str, item: Item) -> None:
        self._callers.setdefault(caller, {})[item] = None

    def first(self) -> tuple[str, Item]:
        """Who is next, and with what; KeyError when nobody waits."""
        if not self._callers:
            raise KeyError("nobody waits")
        # The first of those who hold alike is the one whose last turn was longest ago.
        caller = min(self._callers, key=self._held.__getitem__)
        return caller, next(iter(self._callers[caller]))

    def pop(self) -> Item:
        """Take out who is next; KeyError when nobody waits."""
        caller, item = self.first()
        self.take(caller, item)
        return item

    def hold(self, caller: str, places: int = 1) -> None:
        """From now on `caller` holds so much more."""
        self._held[caller] += places

    def give_back(self, caller: str, places: int = 1) -> None:
        """And now so much less."""
        self._held[caller] -= places
        if not self._held[caller]:
            del self._held[caller]  # or the book would grow with every address

    def take(self, caller: str, item: Item) -> None:
        """Take out one that waits; its caller's next one comes after everybody else's."""
        items = self._callers.pop(caller)
        del items[item]
        if items:
            self._callers[caller] = items

    def discard(self, caller: str, item: Item) -> None:
        """Take it out if it still waits; that was nobody's turn."""
        items = self._callers.get(caller, {})
        items.pop(item, None)
        if not items:
            self._callers.pop(caller, None)


class Turns:
    """Lets work that takes so many places go on at once; the rest waits in line. Used from the event loop alone."""

    def __init__(self, places: int) -> None:
        self._places = self._free = places
        self._line: Line[tuple[asyncio.Future[None], int]] = Line()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def turn(self, caller: str, places: int = 1) -> AsyncIterator[None]:
        """Wait for the caller's turn, and have it for the length of the block; who wants more than all places has all.

        Who is next and needs much is waited for: smaller ones do not pass, or its turn might never come.
        """
        places = min(places, self._places)
        await self._begin(caller, places)
        try:
            yield
        finally:
            self._end(caller, places)

    async def _begin(self, caller: str, places: int = 1) -> None:
        if not self._line and places <= self._free:
            self._hold(caller, places)
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.add(caller, (called, places))
        try:
            await called
        except asyncio.CancelledError:
            self._line.discard(caller, (called, places))
            # The turn may have come at the moment in which its caller left; if not, others may have waited behind.
            self._end(caller, 0 if called.cancelled() else places)
            raise

    def _hold(self, caller: str, places: int) -> None:
        self._free -= places
        self._line.hold(caller, places)

    def _end(self, caller: str, places: int = 1) -> None:
        """Take back what `caller` held, and call those who are next, as far as there are places."""
        self._free += places
        self._line.give_back(caller, places)
        while self._line:
            first, (called, wanted) = self._line.first()
            if not called.done():
                if wanted > self._free:
                    return
                called.set_result(None)
                self._hold(first, wanted)
            self._line.take(first, (called, wanted))
