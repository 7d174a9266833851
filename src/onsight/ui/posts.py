"""What the page's script posts, read before Gradio reads it, which fails on much of what it was never to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from onsight.core.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:  # Gradio takes seconds to load, and is not there without the extra `ui`
    from gradio.block_function import BlockFunction

MOST_BYTES = 1 << 20
"""Of a post that is no upload: a hundred thousand characters of a message, a thousand names of uploads."""

JOIN = "gradio_api/queue/join"

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Number = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Post(BaseModel):
    """The fields that the page needs; the others, which Gradio's script sends too, go no further."""

    model_config = ConfigDict(strict=True)


class _Event(_Post):
    session_hash: _Name
    fn_index: _Number
    data: list[Any]
    trigger_id: _Number | None = None


class _Cancel(_Post):
    session_hash: _Name
    fn_index: _Number
    event_id: _Name


class _Reset(_Post):
    event_id: _Name


_ENDS: dict[str, type[_Post]] = {"gradio_api/cancel": _Cancel, "gradio_api/reset": _Reset}


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body. Raises TooLarge for one of more than `most_bytes` before all of it has come."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise TooLarge(f"the body has {len(body)} bytes or more; {most_bytes} may come here")
    return bytes(body)


def read_post(path: str, body: bytes, functions: Mapping[int, BlockFunction]) -> tuple[str, bytes]:
    """The tab that posts, "" where that is not said, and the body as Gradio may read it. Raises InvalidRequest."""
    try:
        post = _ENDS.get(path, _Event).model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidRequest(f"the page posts nothing like this: {place}: {first['msg']}") from None
    if isinstance(post, _Event):
        function = functions.get(post.fn_index)
        if function is None or function.fn is None or len(post.data) != len(function.inputs):
            raise InvalidRequest(f"the page has no event {post.fn_index} of {len(post.data)} inputs")
    return (post.session_hash if isinstance(post, _Event) else ""), post.model_dump_json().encode()


def with_body(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """A request like that of `scope`, of which everything but the headers was read, with `body` as JSON."""
    kept = [one for one in scope["headers"] if one[0] not in (b"content-type", b"content-length", b"transfer-encoding")]
    added = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    left = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return {**scope, "headers": kept + added}, again
