"""Turns: who waits is served caller by caller, so that nobody waits behind all that one other has asked for.

Requests cost a hundredfold more or less than one another, and only their end tells how much. So callers do not share
the number of turns but the places themselves: a place that becomes free goes to who holds fewest, max-min fairness. Who
holds each of theirs for long gets fewer turns, and nobody needs to know why.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Done = TypeVar("Done")


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
    """Lets work that takes so many places go on at once; the rest waits in line. Used from the event loop alone.

    Who is next and needs more than is free is waited for: only those pass who hold fewer places. So whoever holds none
    is passed by nobody, and a large need never waits for longer than for what its own caller holds.
    """

    def __init__(self, places: int) -> None:
        self._places = self._free = places
        self._line: Line[_Waiting] = Line()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def turn(self, caller: str, places: int = 1) -> AsyncIterator[None]:
        """Wait for the caller's turn, and have it for the length of the block; more than all places is all of them."""
        places = min(places, self._places)
        await self._begin(caller, places)
        try:
            yield
        finally:
            self._end(caller, places)

    async def through(self, caller: str, start: Callable[[], Awaitable[Done]]) -> Done:
        """Wait for the caller's turn, and what comes of `start()`, which takes one place until it is done.

        Also where nobody waits for it any more: a thread cannot be stopped, and who came next would wait for it.
        """

        async def whole() -> Done:
            return await start()

        def ended(work: asyncio.Task[Done]) -> None:
            self._end(caller)
            if not work.cancelled():
                work.exception()  # else asyncio complains in the log of one that nobody waits for

        await self._begin(caller)
        # A task, which is cancelled with the event loop's others where the server ends sooner.
        work = asyncio.create_task(whole())
        work.add_done_callback(ended)
        return await asyncio.shield(work)

    async def _begin(self, caller: str, places: int = 1) -> None:
        waiting = _Waiting(places, asyncio.get_running_loop().create_future())
        self._line.add(caller, waiting)
        self._call()
        try:
            await waiting.called
        except asyncio.CancelledError:
            self._line.discard(caller, waiting)
            # The turn may have come at the moment in which its caller left; if not, others may have waited behind.
            self._end(caller, 0 if waiting.called.cancelled() else places)
            raise

    def _end(self, caller: str, places: int = 1) -> None:
        """Take back what `caller` held."""
        self._free += places
        self._line.give_back(caller, places)
        self._call()

    def _call(self) -> None:
        """Call those who are next, as far as there are places."""
        while self._line:
            caller, first = self._line.first()
            if first.called.cancelled():
                self._line.discard(caller, first)
            elif first.places > self._free:
                return
            else:
                self._free -= first.places
                self._line.take(caller, first)
                self._line.hold(caller, first.places)
                first.called.set_result(None)


@dataclass(eq=False, frozen=True, slots=True)
class _Waiting:
    """What somebody waits for, and what tells them that they have it."""

    places: int
    called: asyncio.Future[None]
