"""How many bytes a body may have, how slowly it may come, and how many bytes all bodies, and one caller's, may hold."""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsight.api.auth import caller_name
from onsight.core.errors import Overloaded, TimedOut, TooLarge

MIN_BYTES_PER_S = 128 << 10
"""A body that comes at least this fast is never too slow, however long it is."""


class BodyLimits:
    """ASGI middleware: refuses a body by its Content-Length, and counts what really comes.

    Bytes are held from when they come, so that a promise alone takes no room, until the request has been answered,
    since its pictures live that long. One caller holds at most three quarters of `max_total_bytes`, or one body;
    before keys are looked at, or without any, callers are addresses. `timeout_s`: how long a body may stand still;
    what comes makes up for it, but gives no more, or who sent much at once could keep it here for minutes.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_total_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max(max_bytes, max_total_bytes)
        self._max_bytes_of_one = max(max_bytes, max_total_bytes * 3 // 4)
        self.timeout_s = timeout_s
        self._held_bytes = 0
        self._holders: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, receive, int(Headers(scope=scope).get("content-length", "0")), caller_name(scope))
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held_bytes -= body.held_bytes
            self._holders[body.caller] -= body.held_bytes
            if not self._holders[body.caller]:
                del self._holders[body.caller]  # or the book would grow with every address

    def check(self, body: _Body, whole_bytes: int) -> None:
        """Whether a body of `whole_bytes` would do. Raises TooLarge or Overloaded."""
        if whole_bytes > self._max_bytes:
            limit = f"the limit is {self._max_bytes} (server.max_body_bytes)"
            raise TooLarge(f"the body has {whole_bytes} bytes or more; {limit}")
        more_bytes = whole_bytes - body.held_bytes
        if self._holders[body.caller] + more_bytes > self._max_bytes_of_one:
            held = f"your other requests hold {self._holders[body.caller] - body.held_bytes} bytes"
            most = f"with this body's {whole_bytes} it would be more than {self._max_bytes_of_one}"
            raise Overloaded(f"{held}, and {most}; try again when one has ended", retry_after_s=2)
        if self._held_bytes + more_bytes > self._max_total_bytes:
            raise Overloaded("too many large requests are being answered; try again in a moment", retry_after_s=2)

    def hold(self, body: _Body, more_bytes: int) -> None:
        """Count what has come of `body`. Raises TooLarge or Overloaded."""
        self.check(body, body.held_bytes + more_bytes)
        self._held_bytes += more_bytes
        self._holders[body.caller] += more_bytes
        body.held_bytes += more_bytes


class _Body:
    """One request's body as it comes in."""

    def __init__(self, limits: BodyLimits, receive: Receive, declared_bytes: int, caller: str) -> None:
        self._limits = limits
        self._receive = receive
        self._declared_bytes = declared_bytes
        self._left_s = limits.timeout_s
        self._complete = False
        self.caller = caller
        self.held_bytes = 0

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if not self.held_bytes:
            self._limits.check(self, self._declared_bytes)
        clock = asyncio.get_running_loop()
        began = clock.time()  # of this piece: that we are slow to ask for one is not the client's fault
        try:
            async with asyncio.timeout(self._left_s):
                message = await self._receive()
        except TimeoutError:
            raise self._too_slow() from None
        piece_bytes = len(message.get("body", b""))
        self._limits.hold(self, piece_bytes)
        left_s = self._left_s - (clock.time() - began) + piece_bytes / MIN_BYTES_PER_S
        self._left_s = min(left_s, self._limits.timeout_s)
        self._complete = not message.get("more_body", False)
        return message

    def _too_slow(self) -> TimedOut:
        slow = f"it stood still for {self._limits.timeout_s:g} s, or came at less than {MIN_BYTES_PER_S >> 10} KiB/s"
        return TimedOut(f"the body came too slowly, {self.held_bytes} bytes: {slow} for longer (server.body_timeout_s)")
