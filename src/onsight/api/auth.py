"""Who may call: with keys, nobody without one, on any path that is not listed here as open."""

from __future__ import annotations

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from onsight.api.errors import Forbidden, Unauthorized
from onsight.api.keys import Caller, KeyBook, Scope
from onsight.core.addresses import neighbourhood

ALWAYS_OPEN = frozenset({"/health", "/ready", "/docs"})
"""Paths that need no key: probes have none, and the /docs page is a form that asks for it."""

NEEDED: tuple[tuple[str, Scope], ...] = (
    ("/v1/chat/", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/caption", "chat"),
    ("/v1/ocr", "chat"),
    ("/v1/locate", "chat"),
    ("/v1/describe", "chat"),
    ("/v1/embeddings", "embed"),
    ("/v1/score", "embed"),
    ("/v1/rerank", "embed"),
    ("/embed/", "embed"),
    ("/patches", "embed"),
    ("/info", "embed"),
    ("/infer", "chat"),
    ("/metrics", "admin"),
)
"""How a path begins, and the scope that it needs."""

ANY_KEY = ("/v1/models", "/openapi.json")
"""Beginnings of paths that every key opens, besides `/` itself; a path that nothing answers at is 404 for each key."""


PAGE = "/ui"
"""Where the page is; it asks for a key in its own way, since a browser sends no header of ours."""


def routed_path(scope: AsgiScope) -> str:
    """The path by which a route is found: without the prefix (`root_path`) that a server before us puts there.

    It is the router's own function, so that no rule can see another path than the route does; to be asked before
    routing, which writes the prefix of the page's mount into `scope`.
    """
    return get_route_path(scope)


def wants_html(headers: Headers) -> bool:
    """Whether the request comes from somebody who looks at pages: at `/` nothing but the way to one is told to them."""
    return "text/html" in headers.get("accept", "")


class Auth:
    """ASGI middleware that denies by default; `open_paths` need no key besides `ALWAYS_OPEN`.

    `has_page`: what is under `PAGE` looks after itself.
    """

    def __init__(
        self, app: ASGIApp, *, keys: KeyBook, open_paths: frozenset[str] = frozenset(), has_page: bool = False
    ) -> None:
        self._app = app
        self._keys = keys
        self._open = ALWAYS_OPEN | open_paths
        self._has_page = has_page

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._is_open(scope)):
            await self._app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        caller = None if given is None else self._keys.find(given)
        if caller is not None:
            _check(caller, routed_path(scope))
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, receive, send)
        elif given is None:
            raise Unauthorized("this server needs a key; send it as 'Authorization: Bearer KEY'")
        else:
            raise Unauthorized(
                "the key is wrong or has expired; send a key of this server as 'Authorization: Bearer KEY'"
            )

    def _is_open(self, scope: AsgiScope) -> bool:
        path = routed_path(scope)
        if path == "/":
            return scope["method"] == "GET" and wants_html(Headers(scope=scope))
        return path in self._open or (self._has_page and (path == PAGE or path.startswith(f"{PAGE}/")))


def _check(caller: Caller, path: str) -> None:
    """Raises Forbidden for a path that the caller's key does not open."""
    needed = scope_of(path)
    if needed is not None and not caller.may(needed):
        raise Forbidden(f"the key {caller.name!r} opens {' and '.join(caller.scopes)}; {path} needs {needed}")


def scope_of(path: str) -> Scope | None:
    """What a key must open for `path`; None where any key does."""
    return next((scope for beginning, scope in NEEDED if path.startswith(beginning)), None)


def caller_of(scope: AsgiScope) -> Caller | None:
    """Who sent the request of `scope`; None on a server without keys."""
    found: Caller | None = scope.get("state", {}).get("caller")
    return found


def caller_name(scope: AsgiScope) -> str:
    """What to call who sent the request: the name of their key, without keys their address (of IPv6 its network), "-"
    where that is unknown.

    Never the key itself.
    """
    caller, client = caller_of(scope), scope.get("client")
    if caller is not None:
        return caller.name
    return "-" if client is None else neighbourhood(str(client[0]))


def _given_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key")
