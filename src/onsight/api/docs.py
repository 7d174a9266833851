"""GET /docs and /openapi.json: the API's description, and one page of our own that shows it and lets one try it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class DocsRoutes:
    """The routes, bound to the application that they describe."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        page = resources.files("onsight.api") / "static" / "docs.html"
        self._page = page.read_bytes()
        self._policy = _policy(self._page.decode())

    async def page(self, request: Request) -> Response:
        """The page; it loads nothing but /openapi.json."""
        headers = {"content-security-policy": self._policy, "x-content-type-options": "nosniff"}
        return Response(self._page, headers=headers, media_type="text/html")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI description of every route."""
        # It is put together once, in some 80 ms, and kept by the application.
        return JSONResponse(await asyncio.to_thread(self._app.openapi))


def _policy(page: str) -> str:
    """A content security policy under which only the page's own script and style run, and only this server is asked."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self';"
        " img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
