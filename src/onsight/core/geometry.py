"""Points and boxes, and the one place that knows in which space each family speaks of them.

Everything outside a model is in pixels of the upright original image, x to the right, y down, origin at the top
left corner.
"""

from __future__ import annotations

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

    @property
    def centre(self) -> Point:
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)

    def contains(self, point: Point) -> bool:
        return self.x1 <= point.x <= self.x2 and self.y1 <= point.y <= self.y2


def _spans(convention: Convention, resized: Size) -> tuple[float, float]:
    """The model's coordinates of the right and the bottom edge."""
    match convention:
        case "resized_pixels":
            return float(resized.width), float(resized.height)
        case "0..1000":
            return 1000.0, 1000.0
        case "0..1":
            return 1.0, 1.0


def to_original(point: Point, convention: Convention, resized: Size, original: Size) -> Point:
    """A model's point, mapped back axis by axis to the upright original, clamped to its edges.

    `resized` is the size that the model really saw; its two scales differ, so neither axis may borrow the other's.
    """
    span_x, span_y = _spans(convention, resized)
    x = point.x / span_x * original.width
    y = point.y / span_y * original.height
    return Point(min(max(x, 0.0), float(original.width)), min(max(y, 0.0), float(original.height)))


def to_model(point: Point, convention: Convention, resized: Size, original: Size) -> Point:
    """The inverse of `to_original`: a place in the original, in the space that the model speaks."""
    span_x, span_y = _spans(convention, resized)
    return Point(point.x / original.width * span_x, point.y / original.height * span_y)
