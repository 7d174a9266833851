"""One call's answer as a whole, for as long as its client is there."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from onsight.api.boundary import taken_up
from onsight.api.connection import while_connected
from onsight.api.services import Services
from onsight.tasks.chat import Answer, ChatCall, collect

_PIECE_BYTES = 1 << 16


class LongJson(Response):
    """A JSON answer of perhaps a hundred megabytes, sent piece by piece: handing it over in one holds up the loop."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), _PIECE_BYTES):
            piece = self.body[start : start + _PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answered(services: Services, request: Request, call: ChatCall) -> Answer:
    """The one answer to `call`. The request's body must have been read. Raises ClientLeft, and what chat raises."""
    taken_up(request.scope)
    (answer,) = await while_connected(request.receive, collect(services.chat.stream(call)))
    return answer
