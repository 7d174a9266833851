"""Who may call: with a key, nobody without it, on any path that is not listed here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.errors import Unauthorized

ALWAYS_OPEN = frozenset({"/health", "/ready", "/docs"})
"""Paths that need no key: probes have none, and the /docs page is a form that asks for it."""


PAGE = "/ui"
"""Where the page is; it asks for a key in its own way, since a browser sends no header of ours."""


def key_check(key: str) -> Callable[[str], bool]:
    """What tells whether a given text is `key`, in a time that tells nothing of it."""
    # Digests have one length, so that comparing them does not tell the key's.
    digest = hashlib.sha256(key.encode()).digest()
    return lambda given: hmac.compare_digest(hashlib.sha256(given.encode()).digest(), digest)


class Auth:
    """ASGI middleware that denies by default; `open_paths` need no key besides `ALWAYS_OPEN`.

    `has_page`: what is under `PAGE` looks after itself.
    """

    def __init__(
        self, app: ASGIApp, *, key: str, open_paths: frozenset[str] = frozenset(), has_page: bool = False
    ) -> None:
        self._app = app
        self._accepts = key_check(key)
        self._open = ALWAYS_OPEN | open_paths
        self._has_page = has_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._is_open(scope["path"])):
            await self._app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        if given is not None and self._accepts(given):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif given is None:
            raise Unauthorized("this server needs a key; send it as 'Authorization: Bearer KEY'")
        else:
            raise Unauthorized("the key is wrong; send the server's key as 'Authorization: Bearer KEY'")

    def _is_open(self, path: str) -> bool:
        return path in self._open or (self._has_page and (path == PAGE or path.startswith(f"{PAGE}/")))


def _given_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key")
