"""Points and boxes, and the one place that knows in which space each family speaks of them.

Everything outside a model is in pixels of the upright original image, x to the right, y down, origin at the top
left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Convention = Literal["resized_pixels", "0..1000", "0..1"]


@dataclass(frozen=True, slots=True)
class Size:
    """A picture's size in px."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the upright original image, in px."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the upright original image, in px; (x1, y1) is the top left corner, (x2, y2) the bottom right."""

    x1: float
    y1: float
    x2: float
    y2: float

    @staticmethod
    def between(one: Point, other: Point) -> Box:
        """The box of two opposite corners, whichever they are."""
        return Box(min(one.x, other.x), min(one.y, other.y), max(one.x, other.x), max(one.y, other.y))

    @property
    def centre(self) -> Point:
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)

    def contains(self, point: Point) -> bool:
        return self.x1 <= point.x <= self.x2 and self.y1 <= point.y <= self.y2


@dataclass(frozen=True, slots=True)
class View:
    """How a model saw one picture: `original` is the upright picture's size, `seen` the size that it was resized to."""

    original: Size
    seen: Size


_EDGE = 0.01
"""A model's point may lie outside the picture by this share of its side: it is then meant to be on the edge."""
_MARGIN = 0.1
_LEAST_SIDE = 32
_MOST_STRETCHED = 32


def _spans(convention: Convention, view: View) -> tuple[float, float]:
    """The model's coordinates of the right and the bottom edge."""
    match convention:
        case "resized_pixels":
            return float(view.seen.width), float(view.seen.height)
        case "0..1000":
            return 1000.0, 1000.0
        case "0..1":
            return 1.0, 1.0


def to_original(point: Point, convention: Convention, view: View) -> Point:
    """A model's point, mapped back axis by axis to the upright original, clamped to its edges.

    The size that the model really saw counts; its two scales differ, so neither axis may borrow the other's.
    """
    span_x, span_y = _spans(convention, view)
    width, height = view.original.width, view.original.height
    x, y = point.x / span_x * width, point.y / span_y * height
    return Point(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height)))


def to_model(point: Point, convention: Convention, view: View) -> Point:
    """The inverse of `to_original`: a place in the original, in the space that the model speaks."""
    span_x, span_y = _spans(convention, view)
    return Point(point.x / view.original.width * span_x, point.y / view.original.height * span_y)


def lies_outside(point: Point, convention: Convention, view: View) -> bool:
    """Whether a model's point misses the picture by more than what rounding and edges explain."""
    span_x, span_y = _spans(convention, view)
    within = -_EDGE * span_x <= point.x <= (1 + _EDGE) * span_x and -_EDGE * span_y <= point.y <= (1 + _EDGE) * span_y
    return not within


def to_relative(point: Point, size: Size) -> Point:
    """A place in a picture of that size in shares of its width and height, 0..1."""
    return Point(point.x / size.width, point.y / size.height)


def around(box: Box, size: Size) -> Box:
    """`box` with a margin, in whole px inside a picture of that size: what is cut out to show a model the box alone.

    The margin is a tenth of each side, and more where the box is too small or too thin for a model to look at.
    """
    width, height = box.x2 - box.x1, box.y2 - box.y1
    least = max(_LEAST_SIDE, width / _MOST_STRETCHED, height / _MOST_STRETCHED)
    x1, x2 = _widened(box.x1, box.x2, max(width * (1 + 2 * _MARGIN), least), size.width)
    y1, y2 = _widened(box.y1, box.y2, max(height * (1 + 2 * _MARGIN), least), size.height)
    return Box(x1, y1, x2, y2)


def _widened(start: float, stop: float, length: float, limit: int) -> tuple[int, int]:
    """A stretch of about `length` around start..stop, moved or cut to lie in 0..`limit`."""
    low = (start + stop - length) / 2
    low = max(0.0, min(low, limit - length))
    return math.floor(low), min(limit, math.ceil(low + length))
