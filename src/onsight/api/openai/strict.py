"""What every request body of OpenAI's dialect is made of: models that refuse what they do not know, by name."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


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


class Strict(BaseModel):
    """Refuses unknown fields, and texts where numbers belong."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
