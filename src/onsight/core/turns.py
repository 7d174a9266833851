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

    def pop(self) -> Item:
        """Take out who is next; KeyError when nobody waits."""
        if not self._callers:
            raise KeyError("nobody waits")
        caller, items = next(iter(self._callers.items()))
        item = next(iter(items))
        self.take(caller, item)
        return item

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
    """Lets a number of requests work at once, and the others wait in line. Used from the event loop alone."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._line: Line[asyncio.Future[None]] = Line()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Wait for the caller's turn, and have it for the length of the block."""
        await self._begin(caller)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, caller: str) -> None:
        if self._free:
            self._free -= 1
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.add(caller, called)
        try:
            await called
        except asyncio.CancelledError:
            self._line.discard(caller, called)
            if not called.cancelled():  # the turn came at the moment in which its caller left
                self._end()
            raise

    def _end(self) -> None:
        """Call the next one who is still there."""
        while self._line:
            called = self._line.pop()
            if not called.done():
                called.set_result(None)
                return
        self._free += 1
