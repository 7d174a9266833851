"""Which names and addresses this server answers to, and which web pages may call it: a browser carries its user's
network along."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
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
        if _netloc(origin) != host.lower():
            raise Forbidden(f"pages of {origin[:200]!r} may not call this server; add them to --cors-origins")


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


def _netloc(origin: str) -> str | None:
    """Name and port of a page's server, in lower case; None for what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name(host: str) -> str:
    """A Host header's name, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
