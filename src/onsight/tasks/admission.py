"""The bounded queue's places: one is taken before any work is done for a request, and given back when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from onsight.core.errors import Overloaded, Unavailable


class Admission:
    """Counts the places in use. Used from the event loop alone, so it needs no lock."""

    def __init__(self, places: int) -> None:
        """`places`: most requests (choices, with `n`) that may run and wait at once."""
        self.places = places
        self.taken = 0
        self.refused_total = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def draining(self) -> bool:
        return self._draining

    @contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """Hold `count` places. Raises Overloaded when they are not free, Unavailable when the server is stopping."""
        if self._draining:
            raise Unavailable("the server is stopping and takes no new requests; try again soon", retry_after_s=5)
        if self.taken + count > self.places:
            self.refused_total += 1
            raise Overloaded(
                f"all {self.places} places in the queue are taken; try again in a moment (--max-queue)", retry_after_s=1
            )
        self.taken += count
        self._empty.clear()
        try:
            yield
        finally:
            self.taken -= count
            if self.taken == 0:
                self._empty.set()

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
