"""How long a request may take, from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from onsight.core.errors import DeadlineMissed

T = TypeVar("T")


class Deadline:
    """A moment on the event loop's clock, which never jumps. What is late then is cancelled."""

    def __init__(self, seconds: float | None) -> None:
        """`seconds` from now; None is never."""
        self._seconds = seconds
        self._at_s: float | None = None
        self.renew()

    def renew(self) -> None:
        """Begin again: for answers without end, whose every piece has the whole time."""
        if self._seconds is not None:
            self._at_s = asyncio.get_running_loop().time() + self._seconds

    async def within(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises DeadlineMissed, with `work` cancelled and unwound, when it comes too late."""
        try:
            async with asyncio.timeout_at(self._at_s) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._missed() from None

    def _missed(self) -> DeadlineMissed:
        return DeadlineMissed(
            f"the answer was not whole within {self._seconds:g} s (--request-timeout-s); ask for a shorter one, or send"
            " the request again when fewer wait"
        )

    async def follow(self, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The events, as long as they come in time. Closing it closes `events`.

        Each is waited for by itself: whoever takes them may do so from one task after the other.
        """
        async with aclosing(events):
            while (event := await self.within(anext(events, None))) is not None:
                # So many may have come while whoever takes them was slow that no wait is cut short any more.
                if self._at_s is not None and asyncio.get_running_loop().time() > self._at_s:
                    raise self._missed()
                yield event
