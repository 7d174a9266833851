"""POST /v1/caption, /v1/ocr, /v1/locate and /v1/describe: read JSON or a form, call the task, answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id, taken_up
from onsight.api.connection import while_connected
from onsight.api.json_body import explain, read_json
from onsight.api.multipart import is_multipart, read_multipart
from onsight.api.services import Services
from onsight.api.sse import EventStream, as_events
from onsight.api.tasks.answers import Said, TextAnswer, locate_answer, text_answer, text_chunks
from onsight.api.tasks.wire import CaptionRequest, DescribeRequest, LocateRequest, OcrRequest, PictureRequest
from onsight.api.whole import answered
from onsight.core.errors import InvalidRequest, RequestError
from onsight.core.messages import ImageRef
from onsight.media.data_url import as_url
from onsight.tasks import caption, describe, locate, ocr
from onsight.tasks.asking import PictureCall
from onsight.tasks.chat import Answer, ChatCall, collect_pages

Wire = TypeVar("Wire", bound=PictureRequest)

Read = Callable[[int | None, Answer], Said]
"""What a task makes of each page's answer, or a picture's."""


@dataclass(frozen=True, slots=True)
class _Given(Generic[Wire]):
    """A request as it was read, and the same as tasks understand it."""

    wire: Wire
    call: PictureCall


class TaskRoutes:
    """The routes, bound to what they call."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def caption(self, request: Request) -> Response:
        """Say what a picture shows."""
        given = await self._read(request, CaptionRequest)
        call = caption.prompt(given.call, given.wire.length)
        return await self._say(request, call, _plain(caption.read), stream=given.wire.stream)

    async def ocr(self, request: Request) -> Response:
        """Write out the text in a picture."""
        given = await self._read(request, OcrRequest)
        call = ocr.prompt(given.call, lines=given.wire.lines)

        def read(page: int | None, answer: Answer) -> Said:
            if not given.wire.lines:
                return Said(page, answer, ocr.read(answer))
            lines = ocr.read_lines(answer, given.call.model.card)
            return Said(page, answer, "\n".join(line.text for line in lines), lines)

        return await self._say(request, call, read, stream=given.wire.stream)

    async def describe(self, request: Request) -> Response:
        """Say what is inside a box of a picture."""
        given = await self._read(request, DescribeRequest)
        call = describe.prompt(given.call, given.wire.region)
        return await self._say(request, call, _plain(describe.read), stream=given.wire.stream)

    async def locate(self, request: Request) -> Response:
        """Say where a target is, in pixels of the upright original."""
        given = await self._read(request, LocateRequest)
        model, wanted = given.call.model, given.wire.wanted
        with _own_fields():
            answer = await answered(self._services, request, locate.prompt(given.call, wanted))
        located = locate.read(answer, model.card, wanted)
        return _json(locate_answer(model.name, model.card.convention, located, answer))

    async def _read(self, request: Request, kind: type[Wire]) -> _Given[Wire]:
        # A full or stopping server says so before it reads a body; the place itself is taken by the task.
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass
        if is_multipart(request):
            wire, source, param = await _read_form(request, kind)
        else:
            wire = await read_json(request, kind)
            source, param = as_url(wire.image), "image"
        image = ImageRef(source, wire.options, param, wire.wanted_pages)
        model = self._services.roster.find(wire.model)
        scope = request.scope
        return _Given(wire, PictureCall(image, model, wire.max_tokens, request_id(scope), caller_name(scope)))

    async def _say(self, request: Request, call: ChatCall, read: Read, *, stream: bool) -> Response:
        model = self._services.roster.find(call.model).name
        taken_up(request.scope)
        choices = self._services.chat.stream(call)
        with _own_fields():
            if not stream:
                pages = await while_connected(request.receive, collect_pages(choices))
                return _json(text_answer(model, [read(page, answer) for page, answer in pages]))
            events = as_events(text_chunks(choices, model))
            # Refusals come with the first event; only after it are headers sent.
            first = await while_connected(request.receive, anext(events))
        return EventStream(first, events)


def _plain(read: Callable[[Answer], str]) -> Read:
    """What a task that answers with a text alone makes of each answer."""
    return lambda page, answer: Said(page, answer, read(answer))


async def _read_form(request: Request, kind: type[Wire]) -> tuple[Wire, str | bytes, str]:
    """A form's fields, its picture, and the name of the field that held it."""
    form = await read_multipart(request)
    if form.file is not None and "image" in form.texts:
        raise InvalidRequest("the form has both `file` and `image`; send one picture", param="image")
    if form.file is None and "image" not in form.texts:
        raise InvalidRequest("`file` is missing", param="file", code="missing_field")
    try:
        wire = kind.model_validate_strings({"image": "file", **form.texts})
    except ValidationError as error:
        raise explain(error) from None
    return (wire, as_url(wire.image), "image") if form.file is None else (wire, form.file, "file")


@contextmanager
def _own_fields() -> Iterator[None]:
    """Name this route's fields in errors that speak of a conversation's or a part's, which the client never wrote."""
    try:
        yield
    except RequestError as error:
        last = (error.param or "").rpartition(".")[2]
        if last in ("min_pixels", "max_pixels", "detail"):
            error.param = last
        elif error.param is not None and error.param.startswith("messages"):
            error.param = "image"
        raise


def _json(body: BaseModel) -> Response:
    # What an answer to texts does not have is left out; places say null, so that each has the same fields.
    return Response(body.model_dump_json(exclude_none=isinstance(body, TextAnswer)), media_type="application/json")
