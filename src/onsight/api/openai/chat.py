"""POST /v1/chat/completions: read, call the chat task, answer plainly or as a stream."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id, taken_up
from onsight.api.connection import while_connected
from onsight.api.json_body import read_json
from onsight.api.openai.answers import Heading, chunks, completion
from onsight.api.openai.calls import to_call
from onsight.api.openai.wire import ChatRequest
from onsight.api.services import ApiSettings, Services
from onsight.api.sse import EventStream, as_events
from onsight.api.whole import LongJson
from onsight.core.errors import InvalidRequest
from onsight.tasks.chat import ChatCall, collect
from onsight.tasks.places import check_mapping, in_original

_MOST_LOGPROBS = 1_000_000
"""Of an answer that is held as a whole: some 300 MB, and 20 beside each of 32 k tokens."""


class ChatRoute:
    """The route, bound to what it calls."""

    def __init__(self, services: Services, settings: ApiSettings) -> None:
        self._services = services
        self._settings = settings

    async def answer(self, request: Request) -> Response:
        """Answer a conversation about pictures and text."""
        # A full or stopping server says so before it reads a body; the place itself is taken by the task.
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass
        wire = await read_json(request, ChatRequest)
        loaded = self._services.roster.find(wire.model)
        defaults, scope = loaded.card.defaults, request.scope
        call = to_call(wire, self._settings, request_id(scope), defaults, caller_name(scope))
        self._check_count(call)
        if not wire.stream:
            _check_logprobs(call, loaded.engine.context_tokens)
        if wire.coordinates is not None:
            call = check_mapping(call, loaded.card, stream=bool(wire.stream))
        heading = Heading(loaded.name)
        taken_up(request.scope)
        events = self._services.chat.stream(call)
        if not wire.stream:
            answers = await while_connected(request.receive, collect(events, call.n))
            if wire.coordinates is not None:
                answers = [in_original(answer, loaded.card) for answer in answers]
            if call.sampling.logprobs:
                return LongJson(await asyncio.to_thread(completion, heading, answers, logprobs=True))
            return Response(completion(heading, answers, logprobs=False), media_type="application/json")
        usage = wire.stream_options is not None and wire.stream_options.include_usage
        stream = as_events(chunks(events, heading, include_usage=usage))
        # Refusals come with the first event; only after it are headers sent.
        return EventStream(await while_connected(request.receive, anext(stream)), stream)

    def _check_count(self, call: ChatCall) -> None:
        places = self._services.admission.most_places
        if call.n > places:
            raise InvalidRequest(
                f"n is {call.n}; this server answers at most {places} at once (server.max_queue)", param="n"
            )


def _check_logprobs(call: ChatCall, context_tokens: int) -> None:
    """Refuse an answer that may hold more log-probabilities than are held at once."""
    asked, each = call.sampling.max_tokens or context_tokens, 1 + call.sampling.top_logprobs
    tokens = min(asked, context_tokens or asked)  # 0 where another program does not say
    count = call.n * tokens * each
    if call.sampling.logprobs and count > _MOST_LOGPROBS:
        raise InvalidRequest(
            f"n {call.n} x {tokens} tokens x {each} log-probabilities each are {count}; the limit is {_MOST_LOGPROBS}"
            " where the answer is not streamed: send `stream: true`, or a smaller n, max_tokens or top_logprobs",
            param="logprobs",
        )
