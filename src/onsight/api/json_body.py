"""A request's JSON body: read, parsed and checked without holding up the event loop."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from onsight.api.errors import WrongContentType
from onsight.core.errors import InvalidRequest, Unsupported

Model = TypeVar("Model", bound=BaseModel)

_SMALL_BYTES = 16 << 10

# The parser takes 43 ms for a megabyte of "[],[],[],", in which every other thread waits, but 0.1 ms for one of base64;
# so what is bounded is the number of values, counted by their separators before parsing.
_TEXTS_SEPARATORS = 400_000
"""Separators that may stand in texts."""
_MAX_VALUES = 100_000
_MAX_FIELDS = 1_000
_COUNT_BYTES = 1 << 20

PART = "part:"
"""Labels of union members begin with this; they are no part of a field's path."""


async def read_json(request: Request, model: type[Model], most_values: int = _MAX_VALUES) -> Model:
    """The body as a `model`. Raises WrongContentType, InvalidRequest, and what `BodyLimits` raises.

    `most_values`: of the body; a model that takes more than usual must stop at the first fault.
    """
    _check_content_type(request)
    body = bytearray()
    async for piece in request.stream():
        body += piece
    if len(body) <= _SMALL_BYTES:
        return parse(body, model, most_values)
    return await asyncio.to_thread(parse, body, model, most_values)


def parse(body: bytes | bytearray, model: type[Model], most_values: int = _MAX_VALUES) -> Model:
    """JSON text as a `model`. Raises InvalidRequest or Unsupported that names the field."""
    separators = 0
    for start in range(0, len(body), _COUNT_BYTES):
        separators += body.count(b",", start, start + _COUNT_BYTES) + body.count(b"[", start, start + _COUNT_BYTES)
        if separators > most_values + _TEXTS_SEPARATORS:
            raise _too_many(f"values; at most {most_values} are read")
    try:
        value = from_json(body, cache_strings="keys")
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is a JSON {_kind(value)}; send an object")
    _check_extent(value, most_values)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error) from None


def _check_content_type(request: Request) -> None:
    # A page on another site may send any other type without asking first, so nothing else is read as JSON.
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise WrongContentType(
            f"the content type is {kind!r}; send application/json" if kind else "send content-type: application/json",
            param="content-type",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WrongContentType(f"the body is encoded as {encoding!r}; send it as it is", param="content-encoding")


def _check_extent(value: object, most_values: int) -> None:
    """Refuse a body of so many values that listing its faults would take seconds."""
    seen = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if len(item) > _MAX_FIELDS:
                raise _too_many("fields in one object")
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        seen += 1
        if seen + len(waiting) > most_values:
            raise _too_many(f"values; at most {most_values} are read")


def _too_many(what: str) -> InvalidRequest:
    return InvalidRequest(f"the body has too many {what}", code="invalid_json")


def explain(error: ValidationError) -> InvalidRequest:
    """The first fault that pydantic found, in one sentence with the field's path."""
    return _explain(error.errors(include_url=False)[0])


def _explain(detail: ErrorDetails) -> InvalidRequest:
    context = detail.get("ctx", {})
    loc = [str(part) for part in detail["loc"]]
    # The client's own word, which may look like a label.
    unknown = loc[-1:] if detail["type"] == "extra_forbidden" else []
    place = [part for part in loc[: len(loc) - len(unknown)] if not part.startswith(PART)] + unknown
    if "field" in context:
        place.append(str(context["field"]))
    param = ".".join(place) or None
    match detail["type"]:
        case "extra_forbidden":
            return InvalidRequest(f"unknown field `{place[-1]}`", param=param, code="unknown_field")
        case "missing":
            return InvalidRequest(f"`{param}` is missing", param=param, code="missing_field")
        case "too_short":
            return InvalidRequest(f"`{param}` is empty", param=param)
        case "model_type":
            return InvalidRequest(f"`{param}` is a JSON {_kind(detail['input'])}; send an object", param=param)
        case "list_type":
            return InvalidRequest(f"`{param}` is a JSON {_kind(detail['input'])}; send an array", param=param)
        case "unsupported":
            what = context.get("value", place[-1])
            return Unsupported(f"`{what}` is not supported: {detail['msg']}", param=param)
        case _:
            shown = "" if "field" in context else _shown(detail["input"])
            return InvalidRequest(f"`{param}`: {_sentence(detail['msg'])}{shown}", param=param)


def _sentence(message: str) -> str:
    return (message[:1].lower() + message[1:]).replace("input should", "it should")


def _shown(value: object) -> str:
    """The value at fault when it is short enough to repeat."""
    match value:
        case bool() | None:
            return f" (it is {str(value).lower().replace('none', 'null')})"
        case int() if abs(value) >= 1 << 64:
            return ""
        case int() | float():
            return f" (it is {value})"[:60]
        case str() if len(value) <= 40:
            return f" (it is {value!r})"
        case _:
            return ""


def _kind(value: object) -> str:
    """JSON's own word for a parsed value."""
    match value:
        case dict():
            return "object"
        case list():
            return "array"
        case str():
            return "string"
        case bool():
            return "boolean"
        case None:
            return "null"
        case _:
            return "number"
