"""What the task routes read: the same fields as JSON and as a form."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from onsight.api.strict import PageSpans, Strict, never, wrong
from onsight.core.geometry import Box
from onsight.core.messages import ImageOptions
from onsight.core.pages import Pages
from onsight.tasks.caption import Length
from onsight.tasks.locate import Shape, Wanted


class PictureRequest(Strict):
    """A picture, and how to look at it."""

    image: str = Field(
        min_length=1,
        description="An http(s) URL, data:image/png;base64,..., or bare base64; in a form, `file` instead.",
    )
    model: str | None = Field(None, description="Left out, it means the only model.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of the answer; the task's own bound if unset.")
    detail: Literal["auto", "low", "high"] | None = None
    min_pixels: int | None = Field(None, ge=1, description="Least area, in px, of the picture that the model sees.")
    max_pixels: int | None = Field(None, ge=1, description="Largest area, in px, of the picture that the model sees.")

    @model_validator(mode="after")
    def _ordered(self) -> PictureRequest:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise wrong("min_pixels", f"it is {self.min_pixels}, more than max_pixels, {self.max_pixels}")
        return self

    @property
    def wanted_pages(self) -> Pages | None:
        """Which pages of a PDF; None where only a picture will do."""
        return None

    @property
    def options(self) -> ImageOptions:
        return ImageOptions(self.detail or "auto", self.min_pixels, self.max_pixels)


class PagesRequest(PictureRequest):
    """A picture or a PDF, and how to look at it."""

    image: str = Field(
        min_length=1,
        description="A picture or a PDF: an http(s) URL, data:image/png;base64,... or data:application/pdf;base64,...,"
        " or bare base64; in a form, `file` instead.",
    )
    pages: PageSpans | None = Field(None, description="Pages of a PDF, like 1-3,7; all of them if unset.")
    stream: bool = False

    @property
    def wanted_pages(self) -> Pages:
        return Pages(self.pages or (), "pages")


class CaptionRequest(PagesRequest):
    """The body of `POST /v1/caption`."""

    length: Length = "normal"


class OcrRequest(PagesRequest):
    """The body of `POST /v1/ocr`."""

    lines: bool = Field(False, description="List the lines of text too, each with its box where the model gives boxes.")

    @model_validator(mode="after")
    def _lines_are_whole(self) -> OcrRequest:
        if self.lines and self.stream:
            raise wrong("stream", "it is true, but lines are answered whole; leave one of them out")
        return self


def _check_target(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("wrong", "it is empty; say what to look for")
    return value


class LocateRequest(PictureRequest):
    """The body of `POST /v1/locate`."""

    target: Annotated[str, BeforeValidator(_check_target)] = Field(description="What to look for, in words.")
    all: bool = Field(False, description="Every instance, where the model can; otherwise the best one.")
    shape: Shape = Field("point", description="A point, or a box where the model can.")
    stream: Annotated[None, *never("places are answered whole")] = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.target, self.all, self.shape)


def _check_box(value: object) -> object:
    """Four finite numbers in order, as a list or, in a form, as a text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4:
        has = f"; it has {len(parts)}" if isinstance(parts, list) else ""
        raise PydanticCustomError("wrong", "{why}", {"why": f"it should be four numbers, x1, y1, x2, y2{has}"})
    numbers = [_number(part) for part in parts]
    x1, y1, x2, y2 = numbers
    if min(numbers) < 0:
        raise PydanticCustomError("wrong", "{why}", {"why": f"it has a negative number, {min(numbers):g}"})
    for name, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high <= low:
            why = f"{name}2 is {high:g}, which must be greater than {name}1, {low:g}"
            raise PydanticCustomError("wrong", "{why}", {"why": why})
    return numbers


def _number(part: object) -> float:
    try:
        if isinstance(part, int | float | str) and not isinstance(part, bool):
            number = float(part)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("wrong", "{why}", {"why": "each of its four values should be a finite number"})


class DescribeRequest(PictureRequest):
    """The body of `POST /v1/describe`."""

    box: Annotated[list[float], BeforeValidator(_check_box)] = Field(
        description="x1, y1, x2, y2 in pixels of the upright picture; in a form, with commas between.",
        min_length=4,
        max_length=4,
    )
    stream: bool = False

    @property
    def region(self) -> Box:
        return Box(*self.box)
