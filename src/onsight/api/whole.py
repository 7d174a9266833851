"""One call's answer as a whole, for as long as its client is there."""

from __future__ import annotations

from starlette.requests import Request

from onsight.api.boundary import taken_up
from onsight.api.connection import while_connected
from onsight.api.services import Services
from onsight.tasks.chat import Answer, ChatCall, collect


async def answered(services: Services, request: Request, call: ChatCall) -> Answer:
    """The one answer to `call`. The request's body must have been read. Raises ClientLeft, and what chat raises."""
    taken_up(request.scope)
    (answer,) = await while_connected(request.receive, collect(services.chat.stream(call)))
    return answer
