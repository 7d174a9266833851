"""Ray Serve: the same application as a deployment, a model each, and before it a door in every proxy of the cluster.

`build` is what Ray imports for an application; `door` is what its HTTP proxies import. The door sends requests about
the same picture to the same replica, asks again where a replica is lost, and ends a broken stream with an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from functools import partial

import httpx
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsight.api.auth import routed_path
from onsight.api.body_limits import BodyLimits
from onsight.api.boundary import Boundary, request_id
from onsight.api.connection import ClientLeft
from onsight.config import MEGABYTE, Settings, load_settings
from onsight.core.errors import Overloaded, StartError, Unavailable
from onsight.serve import assemble, prepare_process, set_up_logging

log = logging.getLogger("onsight.ray")

ANSWERED_BY = "x-onsight-replica"
"""Header of an answer: which replica gave it. What Ray's proxy says of itself has none."""
SESSION = "x-session-id"
"""Header by which Ray's router keeps requests together; a client's own is left as it is."""

_WHOLE = "onsight.whole"
"""Mark on the last message of an answer that the application itself sent; a lost replica's answer ends without."""
_OF_RAY = "/-/"
"""Beginning of the paths at which Ray's proxy answers for itself."""
_TRIES = 6
_FIRST_PAUSE_S = 0.1
_SMALL_BYTES = 1 << 16
_MOST_PARSED_BYTES = 1 << 20
_BODIES_AT_ONCE = 8
_HEALTH_PERIOD_S = 5.0
_NOT_OURS = frozenset({"host", "port", "head_timeout_s", "max_connections", "trusted_proxies"})
"""Options that belong to Ray's proxies, which listen."""
_PICTURE = re.compile(rb'"(?:url|image_url|image|b64|data)"\s*:\s*"((?:data:|https?:|[A-Za-z0-9+/]{64})[^"]*)"')
"""How routes are given a picture in JSON: by URL or as base64."""


class Scaling(BaseModel):
    """How many replicas there may be, and what one of them takes. `target_requests`: running and waiting, a replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_requests: float = Field(6, gt=0)
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(300, ge=0)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    replicas_a_node: int | None = Field(None, ge=1)


def build(arguments: Mapping[str, object]) -> serve.Application:
    """An application of Ray Serve out of its `args`: `scaling` (see `Scaling`) and the options of `onsight serve`.

    Keys are better given to the nodes as ONSIGHT_API_KEY than written there. Raises StartError.
    """
    options = dict(arguments)
    try:
        scaling = Scaling.model_validate(options.pop("scaling", {}))
    except ValueError as error:
        raise StartError(f"`scaling` of the Ray application is wrong: {error}") from None
    settings = _settings(options)
    return _deployment(settings, scaling).bind(options)


def _settings(options: Mapping[str, object]) -> Settings:
    """Ray's proxies are reached by others, so that a key is asked for as on any address. Raises StartError."""
    if listening := sorted(_NOT_OURS & options.keys()):
        raise StartError(f"option {listening[0]} has no effect here, since Ray's proxies listen: leave it out")
    return load_settings({**options, "host": "0.0.0.0"})


def _deployment(settings: Settings, scaling: Scaling) -> serve.Deployment:
    return serve.deployment(
        serve.ingress()(Replica),
        name="Onsight",
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=settings.max_queue,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        ),
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        max_replicas_per_node=scaling.replicas_a_node,
        request_router_config=RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
        ),
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 5,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=3 * _HEALTH_PERIOD_S,
    )


class Replica:
    """One process with one model behind the same application as `onsight serve`."""

    async def __init__(self, options: Mapping[str, object]) -> None:  # type: ignore[misc]  # Ray awaits it
        settings = _settings(options)
        prepare_process(settings)
        self._site = assemble(settings)
        await self._site.start()
        name = next(iter(settings.allowed_hosts), "replica")
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(self._site.app), base_url=f"http://{name}")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _Signed(self._site.app, serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        """What Ray asks every few seconds; a replica whose /ready is not 200 is replaced."""
        answer = await self._client.get("/ready")
        if answer.status_code != 200:
            raise RuntimeError(f"/ready answers {answer.status_code}: {answer.text}")

    async def __del__(self) -> None:
        await self._site.close()


class _Signed:
    """ASGI middleware of a replica: says who answered, marks the end of a body, and hides the route prefix."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers[ANSWERED_BY] = self._replica
                message = {**message, "headers": headers.raw}
            elif not message.get("more_body", False):
                message = {**message, _WHOLE: True}
            await send(message)

        path = routed_path(scope) or "/"
        await self._app({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, sign)


def door() -> list[Middleware]:
    """What stands before the router in each proxy (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), innermost first."""
    settings = load_settings({})
    set_up_logging(settings)
    max_bytes = settings.max_body_mb * MEGABYTE
    limits = {"max_bytes": max_bytes, "max_total_bytes": _BODIES_AT_ONCE * max_bytes}
    return [
        Middleware(Door),
        Middleware(BodyLimits, **limits, timeout_s=settings.body_timeout_s),
        Middleware(Boundary),
    ]


class ReplicaLost(Unavailable):
    """The replica that had the request is gone; its answer is not to be had."""

    code = "replica_lost"


class Door:
    """ASGI middleware: keeps a request's body, so that until its answer begins it can be asked again elsewhere.

    Raises ReplicaLost for an answer that broke off or could not begin, Overloaded for a full queue; the boundary
    around it makes answers and events of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["x-request-id"] = request_id(scope)
        if body and SESSION not in headers:
            name = partial(conversation, body, headers.get("content-type", ""))
            headers[SESSION] = await asyncio.to_thread(name) if len(body) > _SMALL_BYTES else name()
        for tried in range(_TRIES):
            client = _Client(body, receive)
            answer = _Answer(send)
            # Copied, since Ray's proxy writes the route's prefix into it.
            await self._app({**scope, "headers": headers.raw}, client.receive, answer.send)
            if answer.whole or client.left:
                return
            if answer.begun:
                raise ReplicaLost("the replica that was answering is lost; ask again")
            if answer.queue_full:
                raise Overloaded("every replica has all the requests that it may hold; try again in a moment")
            log.warning("request %s found no replica or lost it before its answer began", request_id(scope))
            await asyncio.sleep(_FIRST_PAUSE_S * 2**tried)
        raise ReplicaLost(f"no replica could answer in {_TRIES} tries; try again soon", retry_after_s=5)


async def _read(receive: Receive) -> bytes:
    """The whole body, which `BodyLimits` bounds."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def conversation(body: bytes, content_type: str) -> str:
    """A name for what a request is about: its first picture, else what was said up to the first user's words.

    Later turns of a conversation hold both again, and so have the same name.
    """
    picture = _PICTURE.search(body)
    if picture is not None:
        return hashlib.sha256(picture[1]).hexdigest()
    if "boundary=" in content_type:
        boundary = content_type.partition("boundary=")[2].partition(";")[0].strip('"')
        return hashlib.sha256(body.replace(boundary.encode(), b"")).hexdigest()
    return hashlib.sha256(_first_said(body) or body).hexdigest()


def _first_said(body: bytes) -> bytes | None:
    """What a JSON `body` says up to the first user's words; None for what is no such JSON, or too much to be read here,
    where nobody has asked for a key."""
    if len(body) > _MOST_PARSED_BYTES:
        return None
    try:
        table = json.loads(body)
        said = table.get("messages", table.get("input")) if isinstance(table, dict) else None
        if not isinstance(said, list):
            return None
        users = [index for index, one in enumerate(said) if isinstance(one, dict) and one.get("role") == "user"]
        return json.dumps(said[: users[0] + 1 if users else None]).encode()
    except (ValueError, RecursionError):  # either of them, since what can be read may be too deep to be written
        return None


class _Client:
    """What the client sent, as often as it is asked for; then whether it has left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.left = False

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.left = self.left or message["type"] == "http.disconnect"
        return message


class _Answer:
    """An answer on its way to the client: a stream from its first piece on, all else once it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._by_pieces = self._from_ray = self._dropped = False
        self.begun = self.whole = self.queue_full = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers, status = Headers(raw=message["headers"]), message["status"]
            self._by_pieces = "content-length" not in headers
            # Without a replica's name it is what Ray's proxy says of itself: no replica is there, or all are full.
            self._from_ray = ANSWERED_BY not in headers
            self._dropped = self._from_ray and status in (429, 503)
            self.queue_full = self._from_ray and status == 429
        if self._dropped:
            return
        self._held.append(message)
        is_piece = message["type"] == "http.response.body"
        ended = message.get(_WHOLE, False) or (self._from_ray and is_piece and not message.get("more_body", False))
        if ended or (self._by_pieces and is_piece and message["body"]):
            await self._pass_on()
        self.whole = self.whole or ended

    async def _pass_on(self) -> None:
        self.begun = True
        held, self._held = self._held, []
        for message in held:
            await self._send(message)
