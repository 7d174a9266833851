"""The bounded queue: a place is taken before any work is done for a request, and given back when it ends."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onsight.core.errors import Overloaded, Unavailable
from onsight.core.turns import Turns
from onsight.media.door import HoldPixels
from onsight.tasks.deadline import Deadline


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What is bounded besides the places; None: no bound of its own.

    `places_of_one`: most places that one caller holds. `at_work`: most requests of a kind (answers; pages) that are
    worked on, from the opening of their media on; the others wait, and their callers take turns. `pixels`: most px of
    media that all requests have open, or are known to wait with; `pixels_of_one`: those of one caller. `timeout_s`:
    longest time from a request's beginning to its end.
    """

    places_of_one: int | None = None
    at_work: int | None = None
    pixels: int | None = None
    pixels_of_one: int | None = None
    timeout_s: float | None = None


class RequestPixels:
    """The px that the inputs of one request have open: together at most `most`, or one of them alone more."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._given_back = asyncio.Event()

    async def room(self, count: int) -> None:
        """Wait until the request's other inputs leave room for `count` px."""
        while self.held and self.held + count > self._most:
            self._given_back.clear()
            await self._given_back.wait()

    def add(self, count: int) -> None:
        self.held += count
        self._given_back.set()


class Admission:
    """Counts what is in use. Used from the event loop alone, so it needs no lock."""

    def __init__(self, places: int, limits: QueueLimits = QueueLimits()) -> None:
        """`places`: most requests (choices, with `n`) that may run and wait at once."""
        self.places = places
        self.taken = 0
        self.pixels_held = 0
        self.refused_total = 0
        self._limits = limits
        self._holders: Counter[str] = Counter()
        self._pixel_holders: Counter[str] = Counter()
        self._lines: list[Turns] = []
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def most_places(self) -> int:
        """Most places that one request may take."""
        return min(self.places, self._limits.places_of_one or self.places)

    @property
    def waiting(self) -> int:
        """Requests and pages that hold a place and wait for their turn."""
        return sum(line.waiting for line in self._lines)

    @contextmanager
    def place(self, count: int = 1, caller: str = "") -> Iterator[None]:
        """Hold `count` places. Raises Overloaded when they are not free, Unavailable when the server is stopping."""
        if self._draining:
            raise Unavailable("the server is stopping and takes no new requests; try again soon", retry_after_s=5)
        if self.taken + count > self.places:
            self._refuse(f"all {self.places} places in the queue are taken; try again in a moment (--max-queue)")
        if self._holders[caller] + count > self.most_places:
            self._refuse(
                f"{self._holders[caller]} of your requests run or wait, and {self.most_places} may; try again when one"
                " has ended (--max-queue-caller)"
            )
        self.taken += count
        self._holders[caller] += count
        self._empty.clear()
        try:
            yield
        finally:
            self.taken -= count
            self._holders[caller] -= count
            if not self._holders[caller]:
                del self._holders[caller]  # or the book would grow with every address
            if self.taken == 0:
                self._empty.set()

    @contextmanager
    def pixels(self, caller: str = "", request: RequestPixels | None = None) -> Iterator[HoldPixels]:
        """What counts a request's media for the length of the block; a request alone may have any number of px.

        It raises Overloaded when others, or others of the same caller, have too many. `request`: where the block is for
        one input of several, what the others have open; it is waited for, and refuses nothing.
        """
        own, whole = 0, request or RequestPixels(sys.maxsize)

        async def hold(count: int) -> None:
            nonlocal own
            await whole.room(count)
            self._check_pixels(count, own if request is None else request.held, caller)
            own += count
            self.pixels_held += count
            self._pixel_holders[caller] += count
            whole.add(count)

        try:
            yield hold
        finally:
            self.pixels_held -= own
            self._pixel_holders[caller] -= own
            if not self._pixel_holders[caller]:
                del self._pixel_holders[caller]
            whole.add(-own)

    def _check_pixels(self, count: int, own: int, caller: str) -> None:
        """Refuse `count` px more for a request of `caller` that holds `own` of them, if that is too much."""
        if count <= 0:
            return
        limits, of_caller = self._limits, self._pixel_holders[caller]
        for held, most, whose in (
            (self.pixels_held, limits.pixels, "the requests that run and wait have"),
            (of_caller, limits.pixels_of_one, "your requests that run and wait have"),
        ):
            if most is not None and held > own and held + count > most:
                self._refuse(
                    f"{whose} {held / 1e6:.1f} Mpx, and with {count / 1e6:.1f} more it would be more than"
                    f" {most / 1e6:g}; try again in a moment (--max-queue-pixels)"
                )

    def turns(self) -> Turns:
        """A line of its own for one kind of work."""
        self._lines.append(Turns(self._limits.at_work or sys.maxsize))
        return self._lines[-1]

    def deadline(self) -> Deadline:
        """For a request that begins now."""
        return Deadline(self._limits.timeout_s)

    def close(self) -> None:
        """Refuse every new request from now on; those that hold a place go on."""
        self._draining = True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no place is taken, at most `timeout_s` seconds; True when that came about."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _refuse(self, why: str) -> None:
        self.refused_total += 1
        raise Overloaded(why, retry_after_s=1)
