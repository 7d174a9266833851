"""The outermost layer: gives every request its id, and turns every error that nobody caught into an answer.

This is one of the two places in Onsight where a broad `except` is right (the other is the engine's step loop).
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsight.api.auth import caller_name, routed_path
from onsight.api.connection import ClientLeft
from onsight.api.errors import Envelope, InternalError, error_body, error_response
from onsight.api.request_log import log_refusal
from onsight.api.sse import MEDIA_TYPE, event
from onsight.api.traces import remember_trace
from onsight.core.errors import OutOfMemory, RequestError, TimedOut

_log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# A small body has mostly come with its head; reading it keeps the connection usable. A large one is read and dropped
# for a while, so that a client in the middle of sending gets to read why it is refused.
_SMALL_BYTES = 1 << 16
_SMALL_LINGER_S = 0.05
_LINGER_S = 2.0


def request_id(scope: Scope) -> str:
    """The id that the boundary gave to the request of `scope`."""
    return str(scope["state"]["request_id"])


def taken_up(scope: Scope) -> None:
    """Note that a task has the request now and will write its line in the log."""
    scope["state"]["taken_up"] = True


class Boundary:
    """Wraps the whole application, as ASGI middleware; `envelopes`: path -> what errors look like there, unless the
    request's state has an `envelope` of its own.

    `refused`: told of each error that no task keeps books of. A refused WebSocket is closed, for it has no answer.
    `send_timeout_s`: longest time for a client to make room for the next piece of its answer; None is any.
    """

    def __init__(
        self,
        app: ASGIApp,
        envelopes: Mapping[str, Envelope] = MappingProxyType({}),
        refused: Callable[[RequestError], None] | None = None,
        send_timeout_s: float | None = None,
    ) -> None:
        self._app = app
        self._send_timeout_s = send_timeout_s
        self._refused = refused
        self._envelopes = envelopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            try:
                await self._app(scope, receive, send)
            except RequestError:
                await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        envelope = self._envelopes.get(routed_path(scope))
        exchange = _Exchange(Headers(scope=scope), receive, self._in_time(send))
        remember_trace(scope)
        scope.setdefault("state", {}).update(request_id=exchange.id, taken_up=False)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except (ClientLeft, ClientDisconnect):
            return
        except RequestError as error:
            await self._answer(error, envelope, scope, exchange)
        except MemoryError:
            _log.exception("request %s was left without memory", exchange.id, extra=exchange.named)
            await self._answer(OutOfMemory(), envelope, scope, exchange)
        except Exception:  # noqa: BLE001 (the boundary)
            _log.exception("request %s failed", exchange.id, extra=exchange.named)
            unforeseen = f"something went wrong on our side; the server's log has it under request {exchange.id}"
            await self._answer(InternalError(unforeseen), envelope, scope, exchange)

    def _in_time(self, send: Send) -> Send:
        """`send`, which waits while what was sent before is not taken, but not for ever."""

        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                raise ClientLeft from None

        return in_time

    async def _answer(self, error: RequestError, envelope: Envelope | None, scope: Scope, exchange: _Exchange) -> None:
        if not exchange.started:
            envelope = scope["state"].get("envelope", envelope)
            if not scope["state"]["taken_up"]:
                if self._refused is not None:
                    self._refused(error)
                log_refusal(exchange.id, caller_name(scope), scope["method"], scope["path"], error)
            body = None if envelope is None else envelope(error, Request(scope))
            await exchange.refuse(error_response(error, body), scope, patient=not isinstance(error, TimedOut))
        elif exchange.is_stream:
            await exchange.send({"type": "http.response.body", "body": event(error_body(error)), "more_body": False})
        else:
            raise error


class _Exchange:
    """One request and its answer, watched as they pass."""

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        given = headers.get("x-request-id", "")
        self.id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        self.named = {"fields": {"request_id": self.id}}
        self.started = False
        self.is_stream = False
        self._receive = receive
        self._send = send
        self._unread = _has_body(headers)
        self._small = int(_length(headers) or 0) <= _SMALL_BYTES and "transfer-encoding" not in headers
        self._linger_s = _LINGER_S

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def refuse(self, response: Response, scope: Scope, *, patient: bool) -> None:
        """Send `response` although the body may not have been read; `patient`: read on for a moment."""
        self._linger_s = _LINGER_S if patient else 0.0
        if self._small and patient:
            await self._linger(_SMALL_LINGER_S)
        await response(scope, self.receive, self.send)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(MutableHeaders(raw=list(message.get("headers", ()))), message)
        elif not message.get("more_body", False) and self._unread:
            await self._send({**message, "more_body": True})
            await self._linger(self._linger_s)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _begin(self, headers: MutableHeaders, message: Message) -> None:
        self.started = True
        self.is_stream = headers.get("content-type", "").startswith(MEDIA_TYPE)
        headers["x-request-id"] = self.id
        if self._unread:
            headers["connection"] = "close"
        message["headers"] = headers.raw

    async def _linger(self, limit_s: float) -> None:
        """Read on after a refusal: a connection closed under a sending client would lose it the answer."""
        try:
            async with asyncio.timeout(limit_s):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return


def _length(headers: Mapping[str, str]) -> str | None:
    return headers.get("content-length")


def _has_body(headers: Mapping[str, str]) -> bool:
    return _length(headers) not in (None, "0") or "transfer-encoding" in headers
