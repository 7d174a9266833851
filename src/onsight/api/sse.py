"""Server-sent events, in a response that closes its source at once when the client leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from onsight.api.connection import while_connected

MEDIA_TYPE = "text/event-stream"

DONE = b"data: [DONE]\n\n"


def event(data: bytes, name: str = "") -> bytes:
    """`data` (one line) as one event, called `name` if that is not empty."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


async def as_events(data: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Each piece as one event, and the end of the stream. Closing it closes `data`."""
    async with aclosing(data):
        async for piece in data:
            yield event(piece)
    yield DONE


class EventStream(Response):
    """Sends `first` and then what `rest` yields; Starlette's own streaming response would leave `rest` open.

    An error that `rest` raises passes through to the ASGI boundary, which ends the stream with an error event.
    """

    media_type = MEDIA_TYPE

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for data in self._rest:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
