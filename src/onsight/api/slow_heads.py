"""Connections that never say what they want, and too many of them: uvicorn's protocol with bounds on both."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from onsight.api.errors import error_response
from onsight.api.request_log import log_refusal
from onsight.core.errors import RequestError, TimedOut, Unavailable


class BoundedProtocol(H11Protocol):
    """uvicorn waits for ever for the head of a request; here it may take `head_timeout_s`, and at most
    `max_connections` are open at once. Bodies have limits of their own (`onsight.api.body_limits`)."""

    head_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    refused: ClassVar[Callable[[RequestError], None]]
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
        """Say why, as the boundary does for a request, and close; h11 knows of no request to answer."""
        if self.transport.is_closing():
            return
        request_id, answer = uuid.uuid4().hex, error_response(error)
        head = f"HTTP/1.1 {answer.status_code} \r\nconnection: close\r\nx-request-id: {request_id}\r\n".encode()
        fields = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
        self.transport.write(head + fields + b"\r\n" + bytes(answer.body))
        self.transport.close()
        type(self).refused(error)
        log_refusal(request_id, "-" if self.client is None else self.client[0], "-", "-", error)


def bounded_protocol(
    head_timeout: float, connections: int, told: Callable[[RequestError], None]
) -> type[BoundedProtocol]:
    """The protocol with these bounds, `head_timeout` in seconds; uvicorn wants a class, not what makes one.

    `told`: of each connection that is turned away.
    """

    class Bounded(BoundedProtocol):
        head_timeout_s = head_timeout
        max_connections = connections
        refused = told

    return Bounded
