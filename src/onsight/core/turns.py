"""Turns: who waits is served caller by caller, so that nobody waits behind all that one other has asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Line(Generic[Item]):
    """What waits. Callers take turns; what one of them asked for keeps its order."""

    def __init__(self) -> None:
        # Dictionaries keep the order in which their keys came, and lose one from the middle at once.
        self._callers: dict[str, dict[Item, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[Item]:
        """In the order in which `pop` would give them."""
        for turn in zip_longest(*self._callers.values()):
            yield from (item for item in turn if item is not None)

    def add(self, caller: str, item: Item) -> None:
        self._callers.setdefault(caller, {})[item] = None

    def first(self) -> Item:
        """Who is next; KeyError when nobody waits."""
        return self._first()[1]

    def pop(self) -> Item:
        """Take out who is next; KeyError when nobody waits."""
        caller, item = self._first()
        self.take(caller, item)
        return item

    def _first(self) -> tuple[str, Item]:
        if not self._callers:
            raise KeyError("nobody waits")
        caller, items = next(iter(self._callers.items()))
        return caller, next(iter(items))

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
            self._end(places)

    async def _begin(self, caller: str, places: int = 1) -> None:
        if not self._line and places <= self._free:
            self._free -= places
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.add(caller, (called, places))
        try:
            await called
        except asyncio.CancelledError:
            self._line.discard(caller, (called, places))
            # The turn may have come at the moment in which its caller left; if not, others may have waited behind.
            self._end(0 if called.cancelled() else places)
            raise

    def _end(self, places: int = 1) -> None:
        """Call those who are next, as far as there are places."""
        self._free += places
        while self._line:
            called, wanted = self._line.first()
            if not called.done():
                if wanted > self._free:
                    return
                self._free -= wanted
                called.set_result(None)
            self._line.pop()
