"""From our request to the JSON that an OpenAI-speaking server reads: only fields that are listed here ever go out."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image as Pillow

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Image, Message, Text, Video
from onsight.core.tools import ToolCall, ToolUse
from onsight.engines.upstream_engine.dialect import Dialect

_FAST = 1
"""zlib's level for pictures that travel inside one machine: the smallest effort that still shrinks flat areas."""


def write_body(request: GenerateRequest, dialect: Dialect, model: str) -> dict[str, Any]:
    """The body of POST /v1/chat/completions, always streamed; encodes pictures, so not for the event loop.

    Raises InvalidRequest, or Unsupported for what that kind of server would not honour.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, dialect) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **dialect.neutral,
        **_sampling(request.sampling, dialect),
    }
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": _schema(request.schema, "response_format")}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body if request.tools is None else body | _tools(request.tools)


def without_pixels(body: dict[str, Any]) -> dict[str, Any]:
    """The body's messages with a few bytes in place of each picture, to have its words laid out and counted."""
    messages = [
        {**message, "content": [_hollow(part) for part in message["content"] or ()]} for message in body["messages"]
    ]
    return {"messages": messages}


def _hollow(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "image_url": {"url": "data:image/png;base64,AA=="}} if part["type"] == "image_url" else part


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


def _tools(use: ToolUse) -> dict[str, Any]:
    functions = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": _schema(tool.parameters, tool.param),
        }
        for tool in use.tools
    ]
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": function} for function in functions]}
    named = {"type": "function", "function": {"name": use.choice.name}}
    fields["tool_choice"] = use.choice.mode if use.choice.name is None else named
    return fields if use.parallel is None else fields | {"parallel_tool_calls": use.parallel}


def _schema(text: str, param: str | None) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise InvalidRequest("the JSON schema is not a JSON object", param=param)
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
    buffer = io.BytesIO()
    Pillow.frombytes("RGB", (image.width, image.height), image.pixels).save(buffer, "PNG", compress_level=_FAST)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"url": url, "detail": options.detail} if dialect.detail else {"url": url}
