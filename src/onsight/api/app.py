"""The application: which layer wraps which, and which route answers where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from onsight import __version__
from onsight.api.auth import PAGE, Auth
from onsight.api.body_limits import BodyLimits
from onsight.api.boundary import Boundary
from onsight.api.compat import colqwen, infer
from onsight.api.compat.llama_vision import InferRequest
from onsight.api.described_errors import describe_errors
from onsight.api.docs import DocsRoutes
from onsight.api.errors import Envelope, ErrorAnswer, translate_http_exception, translate_validation_error
from onsight.api.health import About, Health, HealthRoutes, Ready
from onsight.api.multipart import MEDIA_TYPE as MULTIPART
from onsight.api.openai.answers import ChatCompletion, ChatCompletionChunk
from onsight.api.openai.chat import ChatRoute
from onsight.api.openai.models import ModelList, ModelObject, ModelRoutes
from onsight.api.openai.responses import ResponsesRoute
from onsight.api.openai.responses_answers import ResponseEvent, ResponseObject
from onsight.api.openai.responses_wire import ResponsesRequest
from onsight.api.openai.wire import ChatRequest
from onsight.api.origin import CorsHeaders, LoopbackOnly, OriginCheck, Preflights
from onsight.api.rates import Rate, RateLimit
from onsight.api.services import ApiSettings, Services
from onsight.api.tasks.answers import LocateAnswer, TextAnswer, TextChunk
from onsight.api.tasks.routes import TaskRoutes
from onsight.api.tasks.wire import CaptionRequest, DescribeRequest, LocateRequest, OcrRequest
from onsight.api.vectors.answers import (
    RAW_LAYOUT,
    EmbeddingList,
    EmbeddingObject,
    EmbeddingsEnd,
    Ranking,
    RawHeader,
    RefusedObject,
    ScoreList,
)
from onsight.api.vectors.routes import LINES, RAW, VectorRoutes
from onsight.api.vectors.wire import EmbeddingsRequest, RerankRequest, ScoreRequest

__all__ = ["ApiSettings", "Services", "create_app"]

ENVELOPES: Mapping[str, Envelope] = {
    "/infer": infer.error_body,
    **dict.fromkeys(colqwen.PATHS, colqwen.error_body),
}
"""Paths whose errors look as the services put them that they come from."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: Services, settings: ApiSettings, lifespan: Lifespan | None = None) -> FastAPI:
    """The HTTP face over `services`; starting and closing engines is the caller's business, or `lifespan`'s."""
    app = _Application(
        title="Onsight",
        version=__version__,
        description="A self-hosted vision-language server. Errors have the body of `ErrorAnswer`, but for those of the"
        " compatibility routes.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=_layers(services, settings),
        lifespan=lifespan,
        responses={"default": {"model": ErrorAnswer, "description": "An error"}},
        exception_handlers={
            HTTPException: translate_http_exception,
            RequestValidationError: translate_validation_error,
        },
    )
    health = _add_routes(app, services, settings)
    if settings.page is not None:
        app.add_api_route(PAGE, _lead_to_page, include_in_schema=False)
        app.mount(PAGE, settings.page)
    health.endpoints.update(_endpoints(app))
    return app


async def _lead_to_page(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{PAGE}/")


def _layers(services: Services, settings: ApiSettings) -> list[Middleware]:
    """What every request passes before its route, outermost first, and why it stands where it does.

    - `CorsHeaders` around all: a listed page can read refusals too, and their `Retry-After`.
    - `Boundary` around all that raises: it makes answers of errors, and gives the id that they are logged under.
    - `OriginCheck`, `LoopbackOnly`: who may not come at all is counted nowhere and has no key compared.
    - `RateLimit` by address before keys, so that guesses are counted, and before preflights, which need no key.
    - `Preflights` before keys: a browser asks for leave (OPTIONS) without one.
    - `Auth` before bodies: not a byte is read for who has no key.
    - `RateLimit` by key after `Auth`, which says whose request it is.
    - `BodyLimits` innermost: the route reads the body through it.
    """
    cors: dict[str, Any] = {
        "allow_origins": sorted(settings.origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", "x-api-key", "x-request-id"],
        "expose_headers": ["x-request-id", "retry-after"],
        "max_age": 600,
    }
    layers = [
        Middleware(
            Boundary,
            envelopes=ENVELOPES,
            refused=services.metrics.refuse,
            send_timeout_s=settings.send_timeout_s,
        ),
        Middleware(OriginCheck, hosts=settings.allowed_hosts, origins=settings.origins),
    ]
    if settings.loopback_only:
        layers.append(Middleware(LoopbackOnly))
    if settings.a_minute_by_address is not None:
        layers.append(Middleware(RateLimit, rate=Rate("address", settings.a_minute_by_address)))
    if settings.origins:
        layers.insert(0, Middleware(CorsHeaders, **cors))
        layers.append(Middleware(Preflights, **cors))
    if settings.keys.guards:
        open_paths = {"/openapi.json": settings.open_docs, "/metrics": settings.open_metrics}
        opened = frozenset(path for path, is_open in open_paths.items() if is_open)
        layers.append(Middleware(Auth, keys=settings.keys, open_paths=opened, has_page=settings.page is not None))
        if settings.rate_by_key is not None:
            layers.append(Middleware(RateLimit, rate=settings.rate_by_key))
    layers.append(
        Middleware(
            BodyLimits,
            max_bytes=settings.max_body_bytes,
            max_total_bytes=settings.max_bodies_bytes,
            timeout_s=settings.body_timeout_s,
        )
    )
    return layers


class _Application(FastAPI):
    """FastAPI, whose description also knows the bodies that our routes read by themselves."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            for body in BODIES:
                schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[body.__name__] = schema
            described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"key": []}, {}]
            describe_errors(described)
            self.openapi_schema = described
        return self.openapi_schema


BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    ChatCompletionChunk,
    ResponsesRequest,
    ResponseEvent,
    CaptionRequest,
    OcrRequest,
    LocateRequest,
    DescribeRequest,
    TextChunk,
    EmbeddingsRequest,
    ScoreRequest,
    RerankRequest,
    RawHeader,
    EmbeddingsEnd,
    colqwen.PatchesRequest,
    colqwen.QueriesRequest,
    InferRequest,
)
"""What routes read or stream by themselves, for the description."""


def _reads(body: type[BaseModel]) -> dict[str, Any]:
    """The description of a route that reads a JSON `body` by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _reference(body)}}}}


def _reads_picture(body: type[BaseModel]) -> dict[str, Any]:
    """The description of a route that reads `body` as JSON, or as a form with the picture in `file`."""
    form = body.model_json_schema()
    form["properties"] = {"file": {"type": "string", "format": "binary"}} | form["properties"]
    del form["properties"]["image"]
    form["required"] = ["file" if name == "image" else name for name in form["required"]]
    description = _reads(body)
    description["requestBody"]["content"][MULTIPART] = {"schema": form}
    return description


def _streams(event: type[BaseModel]) -> dict[str, Any]:
    """The description of a route that may answer with a stream of `event`s."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(event)}
    fields = {"event": {"type": "string"}, "data": data}
    sent = {"type": "object", "description": "An event; the last one's `data` may be [DONE].", "properties": fields}
    return {"content": {"text/event-stream": {"schema": {**sent, "required": ["data"]}}}}


def _reference(model: type[BaseModel]) -> Mapping[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _add_routes(app: FastAPI, services: Services, settings: ApiSettings) -> HealthRoutes:
    chat, models = ChatRoute(services, settings), ModelRoutes(services)
    health, docs = HealthRoutes(services, "docs" if settings.page is None else "ui"), DocsRoutes(app)
    app.add_api_route(
        "/v1/chat/completions",
        chat.answer,
        methods=["POST"],
        summary="Chat about pictures and text",
        tags=["OpenAI"],
        responses={200: {"model": ChatCompletion, **_streams(ChatCompletionChunk)}},
        openapi_extra=_reads(ChatRequest),
    )
    app.add_api_route(
        "/v1/responses",
        ResponsesRoute(services, settings).answer,
        methods=["POST"],
        summary="Answer items of text, pictures and calls",
        tags=["OpenAI"],
        responses={200: {"model": ResponseObject, **_streams(ResponseEvent)}},
        openapi_extra=_reads(ResponsesRequest),
    )
    _add_task_routes(app, TaskRoutes(services))
    _add_vector_routes(app, VectorRoutes(services))
    _add_colqwen_routes(app, colqwen.ColQwenRoutes(services))
    app.add_api_route(
        "/infer",
        infer.InferRoute(services).answer,
        methods=["POST"],
        summary="Caption a picture, or answer about it",
        tags=["compatibility"],
        responses=infer.ANSWERS,
        openapi_extra=infer.BODY,
    )
    app.add_api_route("/v1/models", models.list, response_model=ModelList, summary="List the models", tags=["OpenAI"])
    app.add_api_route(
        "/v1/models/{model:path}", models.get, response_model=ModelObject, summary="One model", tags=["OpenAI"]
    )
    _add_server_routes(app, health, docs, services)
    return health


def _add_server_routes(app: FastAPI, health: HealthRoutes, docs: DocsRoutes, services: Services) -> None:
    app.add_api_route(
        "/", health.about, responses={200: {"model": About}}, summary="What this server is", tags=["server"]
    )
    app.add_api_route(
        "/health",
        health.health,
        responses={200: {"model": Health}, 503: {"model": Health}},
        summary="Does it work?",
        tags=["server"],
    )
    app.add_api_route(
        "/ready", health.ready, responses={200: {"model": Ready}}, summary="Does it take requests?", tags=["server"]
    )
    app.add_api_route(
        "/metrics",
        services.metrics.answer,
        response_class=PlainTextResponse,
        summary="Metrics for Prometheus",
        tags=["server"],
    )
    app.add_api_route("/docs", docs.page, include_in_schema=False)
    app.add_api_route("/openapi.json", docs.openapi, summary="This description", tags=["server"])
    for path, probe in (("/health", health.health), ("/ready", health.ready)):
        app.add_api_route(path, probe, methods=["HEAD"], include_in_schema=False)


def _add_task_routes(app: FastAPI, tasks: TaskRoutes) -> None:
    said: dict[int | str, dict[str, Any]] = {200: {"model": TextAnswer, **_streams(TextChunk)}}
    found: dict[int | str, dict[str, Any]] = {200: {"model": LocateAnswer}}
    for path, endpoint, summary, body, answers in (
        ("/v1/caption", tasks.caption, "Say what a picture shows", CaptionRequest, said),
        ("/v1/ocr", tasks.ocr, "Write out the text in a picture", OcrRequest, said),
        ("/v1/locate", tasks.locate, "Say where something is", LocateRequest, found),
        ("/v1/describe", tasks.describe, "Say what is in a box", DescribeRequest, said),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            tags=["tasks"],
            responses=answers,
            openapi_extra=_reads_picture(body),
        )


def _add_vector_routes(app: FastAPI, routes: VectorRoutes) -> None:
    line = {"oneOf": [_reference(kind) for kind in (EmbeddingObject, RefusedObject, EmbeddingsEnd)]}
    made: dict[str, Any] = {
        "content": {
            RAW: {"schema": {"type": "string", "format": "binary", "description": RAW_LAYOUT}},
            LINES: {"schema": {**line, "description": "A line a page or query; the last one says the usage."}},
        }
    }
    for path, endpoint, summary, body, answer in (
        ("/v1/embeddings", routes.embeddings, "Embed queries and pages", EmbeddingsRequest, EmbeddingList),
        ("/v1/score", routes.score, "Say how well pages answer queries", ScoreRequest, ScoreList),
        ("/v1/rerank", routes.rerank, "Order pages by how well they answer", RerankRequest, Ranking),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            tags=["vectors"],
            responses={200: {"model": answer, **(made if answer is EmbeddingList else {})}},
            openapi_extra=_reads(body),
        )


def _add_colqwen_routes(app: FastAPI, routes: colqwen.ColQwenRoutes) -> None:
    form = {"requestBody": {"required": True, "content": {MULTIPART: {"schema": colqwen.FORM}}}}
    faults: dict[int | str, dict[str, Any]] = {
        422: {"model": colqwen.Faults, "description": "A body in another form"},
        "default": {"model": colqwen.Detail, "description": "An error"},
    }
    app.add_api_route("/info", routes.info, summary="What makes the vectors", tags=["compatibility"], responses=faults)
    for path, endpoint, summary, body, answer in (
        ("/patches", routes.patches, "Vectors of pages by size", _reads(colqwen.PatchesRequest), colqwen.Patches),
        ("/embed/queries", routes.queries, "Embed queries", _reads(colqwen.QueriesRequest), colqwen.QueryVectors),
        ("/embed/images", routes.images, "Embed pages", form, colqwen.PagesVectors),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            tags=["compatibility"],
            responses={200: {"model": answer}, **faults},
            openapi_extra=body,
        )


def _endpoints(app: FastAPI) -> dict[str, str]:
    """Path -> methods and summary of every described route."""
    return {
        route.path_format: f"{', '.join(sorted(route.methods or ()))} - {route.summary}"
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    }
