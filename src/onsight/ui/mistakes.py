"""What a visitor of the page did wrong, as a key of the table of words and the values in its sentence."""

from __future__ import annotations

import math

from onsight.core.geometry import Box, Size


class Mistake(Exception):
    """`key` of the words under `mistake`, and what its sentence names."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key = key
        self.values = values


def read_box(text: str) -> Box:
    """A box typed as x1,y1,x2,y2, in px. Raises Mistake that says which part is wrong, and why."""
    if not text.strip():
        raise Mistake("box_empty")
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise Mistake("box_count", count=len(parts), text=text.strip())
    numbers = [_number(name, part) for name, part in zip(("x1", "y1", "x2", "y2"), parts, strict=True)]
    x1, y1, x2, y2 = numbers
    for name, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high <= low:
            raise Mistake("box_order", name=name, low=f"{low:g}", high=f"{high:g}")
    return Box(x1, y1, x2, y2)


def check_inside(box: Box, size: Size) -> None:
    """Raises Mistake for a box that does not lie in a picture of that size."""
    if box.x2 > size.width or box.y2 > size.height:
        end = {"x": f"{box.x2:g}", "y": f"{box.y2:g}"}
        raise Mistake("box_outside", width=size.width, height=size.height, **end)


def _number(name: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        raise Mistake("box_number", name=name, part=part) from None
    if not math.isfinite(number):
        raise Mistake("box_number", name=name, part=part)
    if number < 0:
        raise Mistake("box_negative", name=name, part=part)
    return number
