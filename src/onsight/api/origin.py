"""Which names this server answers to, and which web pages may call it: a browser carries its user's network along."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.errors import Forbidden


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
        if urlsplit(origin).netloc.lower() != host.lower():
            raise Forbidden(f"pages of {origin[:200]!r} may not call this server; add them to --cors-origins")


def _name(host: str) -> str:
    """A Host header's name, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
