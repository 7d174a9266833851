"""Which names and addresses this server answers to, and which web pages may call it: a browser carries its user's
network along."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.errors import Forbidden, Unauthorized


class OriginCheck:
    """ASGI middleware against pages that call a server which their reader can reach and they cannot.

    `hosts`: names that a request may address; empty allows every one. A page of a foreign name that points to this
    address (DNS rebinding) is refused so. `origins`: pages that may call besides the server's own, "*" for all; another
    page's request is refused before it costs anything, though its browser would hide the answer from it anyway.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], origins: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if self._hosts and _name(host) not in self._hosts:
                raise Forbidden(f"this server does not answer to the name {_name(host)!r}; add it to --allowed-hosts")
            self._check_origin(headers.get("origin"), host)
        await self._app(scope, receive, send)

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        own = _netloc(origin)
        if not own or own != host.lower():
            raise Forbidden(f"pages of {origin[:200]!r} may not call this server; add them to --cors-origins")


class CorsHeaders(CORSMiddleware):
    """Lets listed pages read every answer, whichever layer gives it; what browsers ask first is for `Preflights`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class Preflights(CORSMiddleware):
    """Answers what a browser asks before a listed page's request, and lets all else pass; needs the same arguments."""

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        await self.app(scope, receive, send)


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


def _netloc(origin: str) -> str:
    """An Origin header's name and port; empty where it has none, as "null", or is no address at all."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host header's name, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
