"""From our request to the JSON that an OpenAI-speaking server reads: only fields that are listed here ever go out."""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Image, Message, Text, Video
from onsight.core.tools import ToolCall, ToolUse
from onsight.engines.upstream_engine.dialect import Dialect

_FAST = 1
"""zlib's level for pictures that travel inside one machine: the smallest effort that still shrinks flat areas."""
_PICTURE = secrets.token_hex(16)
"""Stands for a picture while a body is written: base64 too, and nobody outside can write it into a text."""


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted, as bytes. `fields`: the same as a table, with a few bytes in place of each picture."""

    fields: dict[str, Any]
    content: bytes


def write_body(request: GenerateRequest, dialect: Dialect, model: str, reserved: frozenset[str] = frozenset()) -> Body:
    """The body of POST /v1/chat/completions, always streamed; encodes pictures, so not for the event loop.

    `reserved`: words that the prompt must not hold. Raises InvalidRequest, or Unsupported for what that kind of server
    would not honour.
    """
    fields = _fields(request, dialect, model)
    _require_plain(fields, reserved)
    return Body(fields, _fill(fields, [image for message in request.messages for image in message.images]))


def _fields(request: GenerateRequest, dialect: Dialect, model: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, dialect) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **dialect.neutral,
        **_sampling(request.sampling, dialect),
    }
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": _schema(request.schema, "response_format")}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields if request.tools is None else fields | _tools(request.tools, dialect)


def _require_plain(fields: dict[str, Any], reserved: frozenset[str]) -> None:
    """Raises InvalidRequest when one of the words stands in what others wrote of the prompt."""
    if not reserved:
        return
    functions = [list(tool["function"].values()) for tool in fields.get("tools", ())]
    for param, written in (("messages", _said(fields["messages"])), ("tools", _texts(functions))):
        words = "\0".join(written)
        found = next((word for word in reserved if word in words), None)
        if found is not None:
            raise InvalidRequest(
                f"a text holds {found!r}, which this model's server would read as a special token: write it in another"
                " way",
                param=param,
            )


def _said(messages: list[dict[str, Any]]) -> Iterator[str]:
    """The messages' texts as they go out, their calls and what these answer."""
    for message in messages:
        yield from (part["text"] for part in message["content"] or () if part["type"] == "text")
        yield message.get("tool_call_id", "")
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            yield from (call["id"], name, arguments)
            # Some templates write not the text but what it means, in which no escape hides a word.
            yield from _texts(_table(arguments, "a call's arguments are", "messages"))


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, the names of its fields too."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


def _fill(fields: dict[str, Any], images: Iterable[Image]) -> bytes:
    """The fields as JSON, with the pictures in their places.

    Past the encoder, which would look for what to escape letter by letter, and let no other thread run meanwhile.
    """
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    first, *others = text.encode().split(_PICTURE.encode())
    pieces = [first]
    for image, other in zip(images, others, strict=True):
        pieces += [_png(image), other]
    return b"".join(pieces)


def _sampling(sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {sampling.max_tokens}; it must be at least 1", param="max_tokens")
    if sampling.top_k and not dialect.top_k:
        raise Unsupported("top_k is not offered by this model's server; leave it out", param="top_k")
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if dialect.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.max_tokens is not None:
        fields["max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logprobs:
        fields |= {"logprobs": True, "top_logprobs": max(sampling.top_logprobs, dialect.least_top)}
    return fields


def _tools(use: ToolUse, dialect: Dialect) -> dict[str, Any]:
    functions = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": _schema(tool.parameters, tool.param),
        }
        for tool in use.tools
    ]
    named = use.choice.name
    if named is not None and not dialect.named_choice:
        functions = [function for function in functions if function["name"] == named]
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": function} for function in functions]}
    if named is None:
        fields["tool_choice"] = use.choice.mode
    elif dialect.named_choice:
        fields["tool_choice"] = {"type": "function", "function": {"name": named}}
    else:  # one call, as a choice by name means
        return fields | {"tool_choice": "required", "parallel_tool_calls": False}
    return fields if use.parallel is None else fields | {"parallel_tool_calls": use.parallel}


def _schema(text: str, param: str | None) -> dict[str, Any]:
    return _table(text, "the JSON schema is", param)


def _table(text: str, what: str, param: str | None) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise InvalidRequest(f"{what} not a JSON object", param=param)
    return table


def _message(message: Message, dialect: Dialect) -> dict[str, Any]:
    parts = [part for part in message.parts if not isinstance(part, ToolCall)]
    if dialect.images_first and _one_run_of_images(message):
        parts.sort(key=lambda part: not isinstance(part, Image))
    content = [_part(part, dialect) for part in _joined(parts)]
    entry: dict[str, Any] = {"role": message.role, "content": content or None}
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    if calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return entry if message.call_id is None else entry | {"tool_call_id": message.call_id}


def _joined(parts: list[Text | Image | Video]) -> list[Text | Image | Video]:
    """`parts` with texts side by side made one: servers differ in what they put between two."""
    joined: list[Text | Image | Video] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def _one_run_of_images(message: Message) -> bool:
    """Whether its pictures stand side by side: moved to the front together, none loses the words that announce it."""
    places = [place for place, part in enumerate(message.parts) if isinstance(part, Image)]
    return bool(places) and places[-1] - places[0] == len(places) - 1


def _part(part: Text | Image | Video, dialect: Dialect) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image():
            entry: dict[str, Any] = {"type": "image_url", "image_url": _image(part, dialect)}
            # The name of a cache entry: made out of the content, since a client's could stand for another picture.
            return {**entry, "uuid": part.digest} if dialect.names_images else entry
        case Video():
            raise Unsupported("this model's server is not sent videos; send pictures of it", param="messages.video_url")


def _image(image: Image, dialect: Dialect) -> dict[str, str]:
    options = image.options
    for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
        if value is not None:
            raise Unsupported(f"{name} is not honoured by this model's server; leave it out", param=name)
    if options.detail != "auto" and not dialect.detail:
        raise Unsupported(f"detail {options.detail!r} is not honoured by this model's server", param="detail")
    url = f"data:image/png;base64,{_PICTURE}"
    return {"url": url, "detail": options.detail} if dialect.detail else {"url": url}


def _png(image: Image) -> bytes:
    """The picture as a PNG, in base64."""
    buffer = io.BytesIO()
    Pillow.frombytes("RGB", (image.width, image.height), image.pixels).save(buffer, "PNG", compress_level=_FAST)
    return base64.b64encode(buffer.getvalue())
