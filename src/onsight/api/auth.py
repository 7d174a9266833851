"""Who may call: with a key, nobody without it, on any path that is not listed here; without one, this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.errors import Unauthorized

ALWAYS_OPEN = frozenset({"/health", "/ready", "/docs"})
"""Paths that need no key: probes have none, and the /docs page is a form that asks for it."""


class Auth:
    """ASGI middleware that denies by default; `open_paths` need no key besides `ALWAYS_OPEN`."""

    def __init__(self, app: ASGIApp, *, key: str, open_paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        # Digests have one length, so that comparing them does not tell the key's.
        self._digest = hashlib.sha256(key.encode()).digest()
        self._open = ALWAYS_OPEN | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in self._open):
            await self._app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        if given is not None and hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._digest):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif given is None:
            raise Unauthorized("this server needs a key; send it as 'Authorization: Bearer KEY'")
        else:
            raise Unauthorized("the key is wrong; send the server's key as 'Authorization: Bearer KEY'")


class LoopbackOnly:
    """ASGI middleware that refuses what does not come to a loopback address.

    `onsight serve` without a key listens on no other address; another program that runs the application may.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A socket in the file system has no port: whoever may open it has been let in.
        host, port = scope.get("server") or ("", None)
        if scope["type"] == "lifespan" or port is None or _is_loopback(host):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            raise Unauthorized(
                f"this server has no key, so it answers on loopback only, not on {host}: set ONSIGHT_API_KEY, or"
                " ONSIGHT_NO_AUTH=1 to let everybody in"
            )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _given_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key")
