"""How many bytes a body may have, how long a client may take to send it, and how many bodies may be held at once."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsight.core.errors import Overloaded, TimedOut, TooLarge

MIN_BYTES_PER_S = 128 << 10
"""A body that comes at least this fast may take longer than the time limit."""


class BodyLimits:
    """ASGI middleware: refuses a body by its Content-Length, and counts what really comes.

    Bytes are held from when they come, so that a promise alone takes no room, until the request has been answered,
    since its pictures live that long.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_total_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max(max_bytes, max_total_bytes)
        self._timeout_s = timeout_s
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, receive, int(Headers(scope=scope).get("content-length", "0")))
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held_bytes -= body.held_bytes

    def check(self, body: _Body, whole_bytes: int) -> None:
        """Whether a body of `whole_bytes` would do. Raises TooLarge or Overloaded."""
        if whole_bytes > self._max_bytes:
            limit = f"the limit is {self._max_bytes} (server.max_body_bytes)"
            raise TooLarge(f"the body has {whole_bytes} bytes or more; {limit}")
        if self._held_bytes - body.held_bytes + whole_bytes > self._max_total_bytes:
            raise Overloaded("too many large requests are being answered; try again in a moment", retry_after_s=2)

    def hold(self, body: _Body, more_bytes: int) -> None:
        """Count what has come of `body`. Raises TooLarge or Overloaded."""
        self.check(body, body.held_bytes + more_bytes)
        self._held_bytes += more_bytes
        body.held_bytes += more_bytes

    def deadline(self, began: float, received_bytes: int) -> float:
        """When, on the event loop's clock, the next piece of a body must have come."""
        return began + self._timeout_s + received_bytes / MIN_BYTES_PER_S

    def too_slow(self, received_bytes: int) -> TimedOut:
        return TimedOut(
            f"the body came too slowly, {received_bytes} bytes in {self._timeout_s:g} s (server.body_timeout_s)"
        )


class _Body:
    """One request's body as it comes in."""

    def __init__(self, limits: BodyLimits, receive: Receive, declared_bytes: int) -> None:
        self._limits = limits
        self._receive = receive
        self._declared_bytes = declared_bytes
        self._began: float | None = None
        self._complete = False
        self.held_bytes = 0

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._began is None:
            self._began = asyncio.get_running_loop().time()
            self._limits.check(self, self._declared_bytes)
        try:
            async with asyncio.timeout_at(self._limits.deadline(self._began, self.held_bytes)):
                message = await self._receive()
        except TimeoutError:
            raise self._limits.too_slow(self.held_bytes) from None
        self._limits.hold(self, len(message.get("body", b"")))
        self._complete = not message.get("more_body", False)
        return message
