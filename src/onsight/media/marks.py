"""Points and boxes, drawn on a picture."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageDraw

from onsight.core.geometry import Box, Point

_INK = (255, 0, 80)


def draw_marks(picture: Image.Image, places: Iterable[Point | Box], scale: float = 1.0) -> None:
    """Draw crosses and frames on an RGB picture; `scale`: px of the picture for a px that the places speak of."""
    pen = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 300))
    for place in places:
        match place:
            case Box(x1, y1, x2, y2):
                pen.rectangle((x1 * scale, y1 * scale, x2 * scale, y2 * scale), outline=_INK, width=width)
            case Point(x, y):
                x, y, arm = x * scale, y * scale, 4 * width
                pen.line((x - arm, y, x + arm, y), _INK, width)
                pen.line((x, y - arm, x, y + arm), _INK, width)
