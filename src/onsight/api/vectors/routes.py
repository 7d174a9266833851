"""POST /v1/embeddings, /v1/score and /v1/rerank: read, call the task, answer in the form that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id, taken_up
from onsight.api.connection import while_connected
from onsight.api.json_body import read_json
from onsight.api.services import Services
from onsight.api.sse import EventStream
from onsight.api.vectors.answers import Style, lines, ranking, raw, scores, whole
from onsight.api.vectors.calls import embed_call, rerank_call, score_call
from onsight.api.vectors.wire import MOST_VALUES, EmbeddingsRequest, RerankRequest, ScoreRequest
from onsight.api.whole import LongJson
from onsight.core.errors import InvalidRequest
from onsight.tasks.embed import EmbedCall, Embedded, Refused, ScoreCall, Scores

RAW = "application/octet-stream"
LINES = "application/x-ndjson"


class LineStream(EventStream):
    """As `EventStream`, of lines of JSON; an error that is nobody's own cuts it off before its last line."""

    media_type = LINES


class VectorRoutes:
    """The routes, bound to what they call."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def embeddings(self, request: Request) -> Response:
        """The vectors of queries and pages."""
        self._refuse_early(request)
        wire = await read_json(request, EmbeddingsRequest)
        if wire.input is not None:
            self._services.embed.check_count(len(wire.input), "input")
        accept = request.headers.get("accept", "")
        streamed = wire.stream or LINES in accept
        if RAW in accept and (streamed or wire.encoding_format is not None):
            param = "stream" if streamed else "encoding_format"
            raise InvalidRequest(f"`{param}` has no meaning with `accept: {RAW}`; leave one of them out", param=param)
        call = embed_call(wire, request_id(request.scope), caller_name(request.scope), streamed=streamed)
        model = self._services.roster.find_embedder(wire.model).name
        style = Style(model, wire.dtype, wire.encoding_format or "float")
        taken_up(request.scope)
        if streamed:
            stream = lines(self._services.embed.stream(call), style)
            # Refusals come with the first line; only after it are headers sent.
            return LineStream(await while_connected(request.receive, anext(stream)), stream)
        items = await while_connected(request.receive, self._collect(call))
        if RAW in accept:
            return Response(await asyncio.to_thread(raw, items, style), media_type=RAW)
        return LongJson(await asyncio.to_thread(whole, items, style))

    async def score(self, request: Request) -> Response:
        """How well documents answer one query, or each its own."""
        self._refuse_early(request)
        wire = await read_json(request, ScoreRequest, MOST_VALUES)
        call = await asyncio.to_thread(score_call, wire, request_id(request.scope), caller_name(request.scope))
        model = self._services.roster.find_embedder(wire.model).name
        del wire  # numbers take five times as much in it as in the call, which may wait
        return await _json(scores(model, await self._score(request, call)))

    async def rerank(self, request: Request) -> Response:
        """Documents by how well they answer a query."""
        self._refuse_early(request)
        wire = await read_json(request, RerankRequest, MOST_VALUES)
        call = await asyncio.to_thread(rerank_call, wire, request_id(request.scope), caller_name(request.scope))
        model, most = self._services.roster.find_embedder(wire.model).name, wire.top_n
        sent = await asyncio.to_thread(_written, wire.documents) if wire.return_documents else None
        del wire  # as above
        return await _json(ranking(model, await self._score(request, call), most, sent))

    def _refuse_early(self, request: Request) -> None:
        """A full or stopping server says so before it reads a body; the place itself is taken by the task."""
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass

    async def _score(self, request: Request, call: ScoreCall) -> Scores:
        taken_up(request.scope)
        return await while_connected(request.receive, self._services.embed.score(call))

    async def _collect(self, call: EmbedCall) -> list[Embedded | Refused]:
        """All items; raises the first error when there is nothing else."""
        async with aclosing(self._services.embed.stream(call)) as stream:
            items = [item async for item in stream]
        first = items[0]
        if isinstance(first, Refused) and all(isinstance(item, Refused) for item in items):
            raise first.error
        return items


def _written(documents: Sequence[BaseModel]) -> list[str]:
    """What was sent, as JSON, until it is sent back."""
    return [document.model_dump_json(exclude_none=True) for document in documents]


async def _json(body: BaseModel) -> Response:
    return LongJson(await asyncio.to_thread(_dumped, body))


def _dumped(body: BaseModel) -> bytes:
    return body.model_dump_json(exclude_none=True).encode()
