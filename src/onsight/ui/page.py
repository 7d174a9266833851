"""The page as the server mounts it: it is put together while weights load, and asks for keys at its door."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsight.core.addresses import neighbourhood
from onsight.core.errors import InvalidRequest
from onsight.media.uploads import Uploads
from onsight.ui.desk import CALLER, Desk, Workplace
from onsight.ui.gate import Gate
from onsight.ui.open_events import OpenEvents
from onsight.ui.packaged import lay_out_examples
from onsight.ui.posts import JOIN, MOST_BYTES, read_body, read_post, with_body
from onsight.ui.words import LANGUAGES, choose_language, load_words

if TYPE_CHECKING:
    from gradio.routes import App

# Gradio's script is inline and builds functions of the page's own texts; whatever it does, it asks this server alone.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self';"
    " worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)

# An eye; without an icon of its own a browser asks for /favicon.ico.
_ICON = (
    "<link rel=\"icon\" href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<ellipse cx='8' cy='8' rx='7.5' ry='5' fill='%232563eb'/><circle cx='8' cy='8' r='3' fill='white'/></svg>\">"
)

_UPLOAD = "gradio_api/upload"

# What the page's script posts to. Gradio has more: one runs FFmpeg on what it is sent.
_POSTS = re.compile(rf"{_UPLOAD}|{JOIN}|gradio_api/(?:run/[^/]+|cancel|reset)")

# As browsers write it; with a charset, names of files could be what no file can be called.
_FORM = re.compile(r'multipart/form-data; *boundary="?[A-Za-z0-9\'()+_,./:=?-]{1,70}"?', re.IGNORECASE)

_NAME = re.compile(r"[a-z0-9._:-]*")
"""Of a host, in lower case and without brackets."""

# What Gradio's page says of itself to other sites, and a file at a path that is not ours.
_ADVERTISING = re.compile(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="manifest"[^>]*>')


class Page:
    """An ASGI application for everything under /ui.

    `name_of`: what a key that opens the server is called, None for any other; None is for a server without keys.
    """

    def __init__(self, place: Workplace, folder: Path, name_of: Callable[[str], str | None] | None = None) -> None:
        """`folder`: for uploads, which Gradio was told of before; it is removed by `close`."""
        self._place = place
        self._folder = folder
        self._max_bytes = max(place.door.limits.max_bytes, place.door.limits.max_video_bytes)
        self._uploads = Uploads(folder, self._max_bytes)
        self._examples = folder / "examples"
        self._gate = None if name_of is None else Gate(name_of)
        self._words = {language: load_words(language) for language in LANGUAGES}
        self._events = OpenEvents(place.admission)
        self._app: ASGIApp | None = None
        self._started = asyncio.Event()
        self._mounted: dict[str, App] = {}
        self._running = AsyncExitStack()

    async def start(self) -> None:
        """Load Gradio and put the page together on a thread, then start its work."""
        app = await asyncio.to_thread(self._put_together)
        await self._running.enter_async_context(app.router.lifespan_context(app))
        self._app = app
        self._started.set()

    def end_streams(self) -> None:
        """End the streams that browsers keep open for as long as they show the page."""
        for mounted in self._mounted.values():
            mounted.stop_event.set()

    async def close(self) -> None:
        """Stop its work and remove what was uploaded. May be called twice."""
        await self._running.aclose()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _put_together(self) -> FastAPI:
        # Imported here: Gradio takes seconds, which belong on a thread, and is not there without the extra `ui`.
        from onsight.ui.layout import mount

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        examples = lay_out_examples(self._examples)
        for language, words in self._words.items():
            desk = Desk(self._place, words, self._uploads, examples)
            self._mounted[language] = mount(app, desk, self._max_bytes, self._events.most)
            self._events.watch(language, self._mounted[language].get_blocks()._queue)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await PlainTextResponse("the page speaks HTTP", 404)(scope, receive, send)
            return
        request = Request(scope, receive)
        language, slash, rest = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/").partition("/")
        if language not in LANGUAGES or not slash:
            await self._lead(request, language)(scope, receive, send)
        elif (visitor := self._visitor(request)) is None or (self._gate and request.method == "POST" and not rest):
            await (await self._ask_for_key(request, language, rest))(scope, receive, send)
        elif not _is_readable(request):
            await PlainTextResponse("what this request says of the page's address (X-Forwarded-Host) is none", 400)(
                scope, receive, send
            )
        elif request.method == "POST" and not _POSTS.fullmatch(rest):
            await PlainTextResponse("the page does not ask for this", 404)(scope, receive, send)
        else:
            scope.setdefault("state", {})["visitor"] = visitor
            await self._started.wait()
            assert self._app is not None
            if request.method == "POST" and rest == _UPLOAD:
                await self._take_upload(self._app, request, language, send)
            elif request.method == "POST":
                await self._take_post(self._app, request, language, rest, send)
            elif rest == "gradio_api/queue/data":
                with self._events.reading(language, request.query_params.get("session_hash", "")):
                    await self._app(scope, receive, send)
            elif rest == "gradio_api/upload_progress":
                await self._tell_progress(self._app, request, send)
            else:
                await self._app(scope, receive, send if rest else _Cleaned(send, language))

    async def _take_upload(self, app: ASGIApp, request: Request, language: str, send: Send) -> None:
        """Count it, and make room for it afterwards. Raises Overloaded for one too many, InvalidRequest."""
        from onsight.ui.upload_books import forget_progress, forget_removed

        if self._place.count is not None:
            self._place.count(request.state.visitor)
        if not _FORM.fullmatch(request.headers.get("content-type", "")):
            raise InvalidRequest("an upload is a form: multipart/form-data with a boundary and no charset")
        try:
            await app(request.scope, request.receive, send)
        finally:
            # However it ended: Gradio keeps what came of an upload that broke off.
            await asyncio.to_thread(self._uploads.drop_oldest, self._place.uploads_bytes, self._examples)
            await forget_removed(self._mounted[language])
            forget_progress(request.query_params.get("upload_id", ""))

    async def _take_post(self, app: ASGIApp, request: Request, language: str, path: str, send: Send) -> None:
        """Hand on what was checked, and count what then is open. Raises TooLarge, InvalidRequest, Overloaded."""
        words = self._words[language]
        # The page's script shows what stands there.
        request.state.envelope = lambda error, _: json.dumps({"detail": words.sentence(error)}).encode()
        body = await read_body(request, MOST_BYTES)
        tab, body = read_post(path, body, self._mounted[language].get_blocks().fns)
        scope, receive = with_body(request.scope, body, request.receive)
        with self._events.asking(language, tab, request.state.visitor) if path == JOIN else nullcontext():
            await app(scope, receive, send)

    async def _tell_progress(self, app: ASGIApp, request: Request, send: Send) -> None:
        from onsight.ui.upload_books import forget_progress

        try:
            await app(request.scope, request.receive, send)
        finally:
            forget_progress(request.query_params.get("upload_id", ""))

    def _visitor(self, request: Request) -> str | None:
        """Who looks: the name of their key; without keys, their address."""
        if self._gate is not None:
            return self._gate.visitor(request)
        return CALLER if request.client is None else neighbourhood(request.client.host)

    def _lead(self, request: Request, language: str) -> Response:
        """To the page in a language: the one that the address names, or the one that the browser asks for."""
        accepted = choose_language(request.headers.get("accept-language", ""))
        chosen = language if language in LANGUAGES else accepted
        if language not in ("", *LANGUAGES):
            return PlainTextResponse("there is nothing here; the page is at /ui", 404)
        return RedirectResponse(f"{request.scope['root_path']}/{chosen}/", headers={"vary": "accept-language"})

    async def _ask_for_key(self, request: Request, language: str, rest: str) -> Response:
        assert self._gate is not None
        if rest:
            return PlainTextResponse("type a key of this server at /ui first", 401)
        return await self._gate.answer(request, self._words[language])


def _is_readable(request: Request) -> bool:
    """Whether Gradio can read what `request` says of where its page is; else it would fail."""
    told = (request.headers.get(name, "") for name in ("x-forwarded-host", "x-gradio-server"))
    host, server = (value.partition(",")[0].strip() for value in told)
    try:
        parts = [urlsplit(address) for address in (f"http://{host}", server)]
        return all((part.port or 0) >= 0 and _NAME.fullmatch(part.hostname or "") for part in parts)
    except ValueError:  # a port that is no number, brackets that hold no address
        return False


class _Cleaned:
    """Sends Gradio's HTML without its advertising, in the right language, and with a policy that keeps it at home.

    Gradio's own labels are in the browser's language, which is not the page's for who chose another: the page says
    what the browser's is.
    """

    def __init__(self, send: Send, language: str) -> None:
        self._send = send
        self._language = language
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        headers = MutableHeaders(raw=list(self._start["headers"]))
        page = _ADVERTISING.sub("", self._body.decode()).replace('lang="en"', f'lang="{self._language}"', 1)
        speaks = f"<script>Object.defineProperty(navigator, 'language', {{value: '{self._language}'}})</script>"
        page = page.replace("<head>", f"<head>{speaks}", 1).replace("</head>", f"{_ICON}</head>", 1)
        body = page.encode()
        headers["content-length"] = str(len(body))
        headers["content-security-policy"] = _POLICY
        headers["x-content-type-options"] = "nosniff"
        self._start["headers"] = headers.raw
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})
