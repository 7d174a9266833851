"""HTTP to one upstream server: where it is, what it says of itself, and its errors as ours."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from onsight.core.errors import (
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
    StartError,
    TooLarge,
    Unavailable,
)
from onsight.engines.upstream_engine.answer import GARBAGE, AnswerReader, Delta
from onsight.engines.upstream_engine.dialect import Dialect, dialect_of

log = logging.getLogger(__name__)

_LONGEST_LINE = 8 << 20
"""Bytes; one line of a stream holds one token, and with it at most twenty others."""
_SHOWN = 500
_RETRY_S = 5
_CONNECT_S = 5.0
_MEDIA_MARKER = "<__media__>"
"""What stands for a picture in llama.cpp's builds that do not say it."""
_WRITE_S = 60.0
_NO_ENTRY = (401, 403)
_CHAT = "/v1/chat/completions"
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: its URL without /v1 and, for one on this machine, the unix socket's path."""

    url: str
    socket: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of its model. `sees`: whether it takes pictures; None where it does not say."""

    model: str
    dialect: Dialect
    context_tokens: int | None
    sees: bool | None


class Unreached(Unavailable):
    """The request did not get to the model, so that it may be sent again."""


class KeyRefused(EngineFailed):
    """The server does not let us in."""

    def __init__(self, status: int) -> None:
        super().__init__(
            f"the model's server answers {status}, so it wants a key, or another one: give that of a server that runs"
            " elsewhere as --upstream-key, and leave keys out of the settings of one that Onsight starts"
        )


class Connection:
    """One HTTP client for one server. Close it when done.

    `silence_s`: longest time to wait for the next byte of an answer.
    """

    def __init__(self, address: Address, silence_s: float) -> None:
        # Connections are not kept: llama.cpp's server closes them after a stream, at the very moment of the next use.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=address.url,
            transport=httpx.AsyncHTTPTransport(uds=address.socket, limits=limits),
            headers={} if address.key is None else {"authorization": f"Bearer {address.key}"},
            timeout=httpx.Timeout(silence_s, connect=_CONNECT_S, write=_WRITE_S, pool=None),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def facts(self, model: str | None, context_tokens: int | None) -> Facts:
        """Ask for the models; `model` is the one that is meant, None the first. `context_tokens` stands in for what it
        does not say. Raises RequestError, StartError for a model that is not there."""
        listed = (await self._json("GET", "/v1/models")).get("data")
        entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        names = [str(one.get("id")) for one in entries]
        if not entries:
            raise EngineFailed(f"{GARBAGE} (/v1/models names no model)")
        if model is not None and model not in names:
            raise StartError(f"the server has no model {model!r}; it has {', '.join(names)}")
        place = 0 if model is None else names.index(model)
        found = entries[place]
        meta, architecture = found.get("meta"), found.get("architecture")
        said = meta.get("n_ctx") if isinstance(meta, dict) else found.get("max_model_len")
        sees = architecture.get("input_modalities") if isinstance(architecture, dict) else None
        return Facts(
            names[place],
            dialect_of(str(found.get("owned_by"))),
            said if isinstance(said, int) else context_tokens,
            "image" in sees if isinstance(sees, list) else None,
        )

    async def stream(self, content: bytes, reader: AnswerReader) -> AsyncGenerator[Delta, None]:
        """Send one request, which is JSON; its text as it comes, while `reader` gathers the rest. Closing it closes the
        connection, which is how an upstream is told to stop. Raises Unreached before the model saw it, RequestError."""
        begun = False
        try:
            async with self._http.stream("POST", _CHAT, content=content, headers=_JSON) as response:
                if response.status_code != 200:
                    raise await _refusal(response)
                async with aclosing(_lines(response)) as lines:
                    async for line in lines:
                        for delta in reader.read(line):
                            begun = True
                            yield delta
        except httpx.HTTPError as error:
            log.warning("the model's server: %s: %s", type(error).__name__, error)
            raise _broken(error, begun=begun) from error
        if not reader.done or reader.reason is None:
            raise EngineFailed("the model's server broke off in the middle of the answer; ask again")

    async def count_words(self, fields: dict[str, Any]) -> int:
        """How many tokens of a request's prompt are not pictures, by llama.cpp's own tokenizer. Raises RequestError."""
        properties = await self._json("GET", "/props")
        laid_out = await self._json("POST", "/apply-template", fields)
        pieces = str(laid_out.get("prompt")).split(str(properties.get("media_marker", _MEDIA_MARKER)))
        found = await self._json("POST", "/tokenize", {"content": pieces, "add_special": True, "parse_special": True})
        tokens = found.get("tokens")
        if not isinstance(tokens, list):
            raise EngineFailed(GARBAGE)
        return len(tokens)

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise _broken(error, begun=False) from error
        if response.status_code != 200:
            log.debug("the model's server answered %d to %s: %s", response.status_code, path, response.text[:_SHOWN])
            if response.status_code in _NO_ENTRY:
                raise KeyRefused(response.status_code)
            raise Unreached(
                f"the model's server answers {response.status_code}; try again soon", retry_after_s=_RETRY_S
            )
        try:
            answer = response.json()
        except ValueError as error:
            raise EngineFailed(GARBAGE) from error
        if not isinstance(answer, dict):
            raise EngineFailed(GARBAGE)
        return answer


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The stream's lines, none longer than `_LONGEST_LINE`. Raises EngineFailed."""
    pending = b""
    async for piece in response.aiter_bytes():
        *lines, pending = (pending + piece).split(b"\n")
        if len(pending) > _LONGEST_LINE:
            raise EngineFailed(GARBAGE)
        for line in lines:
            yield line


def _broken(error: httpx.HTTPError, *, begun: bool) -> RequestError:
    """What a failed exchange means for the client."""
    if begun:
        return EngineFailed("the model's server broke off in the middle of the answer; ask again")
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return Unavailable("the model's server is too slow to answer; try again later", retry_after_s=_RETRY_S)
    return Unreached("the model's server cannot be reached; try again soon", retry_after_s=_RETRY_S)


async def _refusal(response: httpx.Response) -> RequestError:
    """An answer that is no 200 as an error of ours; what it says goes to the log, but for the numbers of tokens."""
    text = b""
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > _LONGEST_LINE:
            break
    shown = text[:_SHOWN].decode("utf-8", "replace")
    status = response.status_code
    log.warning("the model's server answered %d: %s", status, shown)
    if status in _NO_ENTRY:
        return KeyRefused(status)
    if status == 413:
        return TooLarge("the request's pictures are too large for the model's server: send smaller or fewer ones")
    if status == 429:
        return Overloaded("the model's server has a full queue; try again soon", retry_after_s=_RETRY_S)
    if status in (502, 503, 504):
        return Unreached("the model's server takes no requests now; try again soon", retry_after_s=_RETRY_S)
    if status in (400, 422):
        return _invalid(text)
    return EngineFailed(f"the model's server answered {status}; the server's log says more")


def _invalid(text: bytes) -> InvalidRequest:
    try:
        said = json.loads(text).get("error", {})
    except (ValueError, AttributeError):
        said = {}
    said = said if isinstance(said, dict) else {"message": said}
    message = str(said.get("message", "")).lower()
    if said.get("code") == "context_length_exceeded" or "context" in f"{said.get('type')} {message}":
        taken = said.get("n_prompt_tokens")
        count = f"takes {taken} tokens, which" if isinstance(taken, int) else "with its answer"
        return ContextTooLong(f"the prompt {count} is more than the context holds", param="messages")
    if "schema" in message or "grammar" in message:
        return InvalidRequest("the model's server cannot hold an answer to this JSON schema", param="response_format")
    return InvalidRequest("the model's server refused the request; the server's log says why")
