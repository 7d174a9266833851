"""/info, /patches, /embed/queries and /embed/images, as the ColQwen2.5 service answered them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from onsight import __version__
from onsight.api.auth import caller_name
from onsight.api.boundary import request_id, taken_up
from onsight.api.connection import while_connected
from onsight.api.errors import Unprocessable, WrongContentType
from onsight.api.json_body import read_json
from onsight.api.multipart import FileField, Form, FormFile, read_multipart
from onsight.api.services import Services
from onsight.api.strict import Strict
from onsight.api.whole import LongJson
from onsight.core.embedding import Embedding
from onsight.core.engine import EmbedEngine
from onsight.core.errors import InvalidRequest, RequestError
from onsight.core.messages import ImageRef, Text
from onsight.tasks.embed import EmbedCall, Refused

PATHS = ("/info", "/patches", "/embed/queries", "/embed/images")
"""Where errors are `{"detail": ...}`."""

FORM = {
    "type": "object",
    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    "required": ["files"],
    "additionalProperties": False,
}
"""The body of `POST /embed/images`, for the description."""

_SHOWN_NAME = 100

Wire = TypeVar("Wire", bound=BaseModel)


class Info(BaseModel):
    """The service and its model. `flash_attn`: the package of that name is not used."""

    version: str = __version__
    device: str
    dtype: str
    flash_attn: bool = False
    spatial_merge_size: int
    dim: int
    image_token_id: int


_Side = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]


class Dimensions(Strict):
    """A page's size in px."""

    width: _Side
    height: _Side


class PatchesRequest(Strict):
    """The body of `POST /patches`."""

    dimensions: Annotated[list[Dimensions], Field(fail_fast=True)]


class PatchCount(BaseModel):
    """How many image vectors such a page has."""

    width: int
    height: int
    n_patches_x: int
    n_patches_y: int


class PatchError(BaseModel):
    """Why no page has this size."""

    width: int
    height: int
    error: str


class Patches(BaseModel):
    """One result for each size, in their order."""

    results: list[PatchCount | PatchError]


class QueriesRequest(Strict):
    """The body of `POST /embed/queries`."""

    queries: Annotated[
        list[str],
        Field(fail_fast=True),
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
        ),
    ]


class QueryVectors(BaseModel):
    """For each query, its vectors: [tokens][numbers]."""

    embeddings: list[list[list[float]]]


class PageVectors(BaseModel):
    """A page's vectors, [tokens][numbers], and which of them are its image's: so many from this one on."""

    embedding: list[list[float]]
    image_patch_start: int
    image_patch_len: int


class PagesVectors(BaseModel):
    """The vectors of each page."""

    embeddings: list[PageVectors]


class Detail(BaseModel):
    """The body of an error."""

    detail: str


class Fault(BaseModel):
    """What is wrong with a body, and where."""

    type: str
    loc: list[str]
    msg: str


class Faults(BaseModel):
    """The body of an error with status 422."""

    detail: list[Fault]


def error_body(error: RequestError, request: Request) -> bytes:
    """`error` as that service put it."""
    if isinstance(error, Unprocessable):
        return (
            Faults(detail=[Fault(type=error.code, loc=list(error.place), msg=error.message)]).model_dump_json().encode()
        )
    named = error.param if error.param is not None and error.param.startswith("files.") else None
    return Detail(detail=f"{named}: {error.message}" if named else error.message).model_dump_json().encode()


class ColQwenRoutes:
    """The routes, bound to what they call."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def info(self) -> Info:
        """What makes the vectors."""
        engine = self._services.roster.find_embedder(None).engine
        space = engine.space
        return Info(
            device=engine.status().device,
            dtype=f"torch.{space.dtype}",
            spatial_merge_size=space.merge,
            dim=space.dims,
            image_token_id=space.image_token_id,
        )

    async def patches(self, request: Request) -> Response:
        """How many image vectors pages of these sizes have; a size that none has is told so in its place."""
        wire = await _read_json(request, PatchesRequest)
        self._services.embed.check_count(len(wire.dimensions), "dimensions")
        engine = self._services.roster.find_embedder(None).engine
        return _json(await asyncio.to_thread(_patches, engine, wire.dimensions))

    async def queries(self, request: Request) -> Response:
        """The vectors of queries."""
        self._refuse_early(request)
        wire = await _read_json(request, QueriesRequest)
        self._services.embed.check_count(len(wire.queries), "queries")
        made = await self._embed(request, tuple(Text(query) for query in wire.queries))
        return _json(await asyncio.to_thread(_query_vectors, made))

    async def images(self, request: Request) -> Response:
        """The vectors of pages, each a file."""
        self._refuse_early(request)
        files = (await _read_form(request, self._services.embed.most_pages)).files
        refs = tuple(ImageRef(file.data, param=_shown(number, file)) for number, file in enumerate(files))
        made = await self._embed(request, refs)
        return _json(await asyncio.to_thread(_page_vectors, made))

    def _refuse_early(self, request: Request) -> None:
        """A full or stopping server says so before it reads a body; the place itself is taken by the task."""
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass

    async def _embed(self, request: Request, inputs: tuple[Text | ImageRef, ...]) -> list[Embedding]:
        taken_up(request.scope)
        call = EmbedCall(inputs, request_id=request_id(request.scope), caller=caller_name(request.scope))
        return await while_connected(request.receive, self._collect(call))

    async def _collect(self, call: EmbedCall) -> list[Embedding]:
        made = []
        async with aclosing(self._services.embed.stream(call)) as items:
            async for item in items:
                if isinstance(item, Refused):
                    raise item.error
                made.append(item.embedding)
        return made


async def _read_json(request: Request, model: type[Wire]) -> Wire:
    try:
        return await read_json(request, model)
    except InvalidRequest as error:
        place = error.param.split(".") if error.param else []
        raise Unprocessable(error.message, place=("body", *place), code=error.code) from None


async def _read_form(request: Request, most_files: int) -> Form:
    try:
        form = await read_multipart(request, FileField("files", repeated=True, most=most_files))
    except WrongContentType as error:
        raise Unprocessable(error.message, place=("body", "files"), code="missing") from None
    for name in form.texts:
        raise Unprocessable(
            f"unknown field `{name}`; send pages as `files`", place=("body", name), code="extra_forbidden"
        )
    if not form.files:
        raise Unprocessable("Field required", place=("body", "files"), code="missing")
    return form


def _shown(number: int, file: FormFile) -> str:
    """What an error calls a file."""
    return f"files.{number} ({file.name[:_SHOWN_NAME]})" if file.name else f"files.{number}"


def _patches(engine: EmbedEngine, pages: Sequence[Dimensions]) -> bytes:
    results: list[PatchCount | PatchError] = []
    for one in pages:
        try:
            columns, rows = engine.n_patches(one.width, one.height)
            results.append(PatchCount(**one.model_dump(), n_patches_x=columns, n_patches_y=rows))
        except InvalidRequest as error:
            results.append(PatchError(**one.model_dump(), error=error.message))
    return Patches(results=results).model_dump_json().encode()


def _query_vectors(made: list[Embedding]) -> bytes:
    return to_json({"embeddings": (one.vectors() for one in made)})


def _page_vectors(made: list[Embedding]) -> bytes:
    # Made while they are written, page by page, so that other threads may run in between.
    pages = (
        {"embedding": one.vectors(), "image_patch_start": one.image.start, "image_patch_len": one.image.length}
        for one in made
    )
    return to_json({"embeddings": pages})


def _json(body: bytes) -> Response:
    return LongJson(body)
