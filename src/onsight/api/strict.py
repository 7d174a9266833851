"""How every body is read: no unknown field, no text where a number belongs, and each fault with its field's name."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from onsight.core.pages import read_spans


class Strict(BaseModel):
    """Refuses unknown fields, and texts where numbers belong."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def only(why: str, *allowed: object) -> BeforeValidator:
    """Lets null and `allowed` pass and refuses every other value, with the field's name and `why`."""

    def check(value: object) -> object:
        if value is None or any(type(value) is type(item) and value == item for item in allowed):
            return value
        raise PydanticCustomError("unsupported", "{why}", {"why": why})

    return BeforeValidator(check)


def never(why: str) -> tuple[BeforeValidator, FieldInfo]:
    """Lets only null pass, and says so in the description."""
    return only(why), Field(description=f"Not offered: {why}.")


def wrong(field: str, why: str) -> PydanticCustomError:
    """A fault in `field` of the object at hand."""
    return PydanticCustomError("wrong", "{why}", {"why": why, "field": field})


def _check_numbers(schema: dict[str, object]) -> dict[str, object]:
    # The parser takes NaN, Infinity and 1e999, which no JSON that is sent on can say.
    try:
        json.dumps(schema, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("wrong", "it holds NaN or an infinite number, which are no JSON") from None
    return schema


Schema = Annotated[dict[str, object], AfterValidator(_check_numbers)]
"""A JSON Schema; what it means is the engine's to say."""


def _read_pages(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PydanticCustomError("wrong", "it should be a text, like 1-3,7")
    try:
        return read_spans(value)
    except ValueError as error:
        raise PydanticCustomError("wrong", "{why}", {"why": str(error)}) from None


PageSpans = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_read_pages), WithJsonSchema({"type": "string"})]
"""Pages as clients write them, like 1-3,7."""
