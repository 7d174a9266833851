"""Connections that never say what they want, and too many of them: uvicorn's protocol with bounds on both."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from onsight.api.errors import error_body, status_of
from onsight.core.errors import RequestError, TimedOut, Unavailable


class BoundedProtocol(H11Protocol):
    """uvicorn waits for ever for the head of a request; here it may take `head_timeout_s`, and at most
    `max_connections` are open at once. Bodies have limits of their own (`onsight.api.body_limits`)."""

    head_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._turn_away(
                Unavailable(f"all {self.max_connections} connections are taken; try again soon (--max-connections)")
            )
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Bytes do not wind the clock up again: it runs from the first moment until a head is whole."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._turn_away(TimedOut(f"the request's head did not come within {self.head_timeout_s:g} s"))

    def _turn_away(self, error: RequestError) -> None:
        """Say why and close; h11 is not asked, since it knows of no request to answer."""
        if self.transport.is_closing():
            return
        body = error_body(error)
        head = (
            f"HTTP/1.1 {status_of(error)[0]} \r\nconnection: close\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bounded_protocol(head_timeout: float, connections: int) -> type[BoundedProtocol]:
    """The protocol with these bounds, `head_timeout` in seconds; uvicorn wants a class, not what makes one."""

    class Bounded(BoundedProtocol):
        head_timeout_s = head_timeout
        max_connections = connections

    return Bounded
