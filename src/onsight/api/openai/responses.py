"""POST /v1/responses: OpenAI's newer dialect, on the same chat task. Nothing is kept between requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id, taken_up
from onsight.api.connection import while_connected
from onsight.api.json_body import read_json
from onsight.api.openai.responses_answers import Telling
from onsight.api.openai.responses_calls import to_call
from onsight.api.openai.responses_wire import ResponsesRequest
from onsight.api.services import ApiSettings, Services
from onsight.api.sse import EventStream
from onsight.core.errors import InvalidRequest
from onsight.tasks.chat import ChoiceEvent, collect

_NAMES = {"response_format": "text.format", "max_tokens": "max_output_tokens", "messages": "input"}
"""This dialect's names of the fields that tasks and engines name in chat's."""


class ResponsesRoute:
    """The route, bound to what it calls."""

    def __init__(self, services: Services, settings: ApiSettings) -> None:
        self._services = services
        self._settings = settings

    async def answer(self, request: Request) -> Response:
        """Answer a conversation about pictures and text, by text or by calls of functions."""
        # A full or stopping server says so before it reads a body; the place itself is taken by the task.
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass
        wire = await read_json(request, ResponsesRequest)
        loaded = self._services.roster.find(wire.model)
        defaults, scope = loaded.card.defaults, request.scope
        call = to_call(wire, self._settings, request_id(scope), defaults, caller_name(scope))
        telling = Telling(wire, call, loaded.name)
        taken_up(request.scope)
        events = _in_this_dialect(self._services.chat.stream(call))
        if not wire.stream:
            (answer,) = await while_connected(request.receive, collect(events))
            return Response(telling.whole(answer), media_type="application/json")
        stream = telling.stream(events)
        # Refusals come with the first event; only after it are headers sent.
        return EventStream(await while_connected(request.receive, anext(stream)), stream)


async def _in_this_dialect(events: AsyncGenerator[ChoiceEvent, None]) -> AsyncGenerator[ChoiceEvent, None]:
    """`events`, with this dialect's names in what is refused."""
    try:
        async with aclosing(events):
            async for choice in events:
                yield choice
    except InvalidRequest as error:
        field = (error.param or "").partition(".")[0]
        error.param = _NAMES.get(field, error.param)
        raise
