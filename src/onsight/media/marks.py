"""Points and boxes, drawn on a picture."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageDraw

from onsight.core.geometry import Box, Point

_INK = (255, 0, 80)
_EDGE = (255, 255, 255)
"""Round the ink, which else is lost on its own colours."""


def draw_marks(picture: Image.Image, places: Iterable[Point | Box], scale: float = 1.0) -> None:
    """Draw crosses and frames on an RGB picture; `scale`: px of the picture for a px that the places speak of."""
    pen = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 300))
    edge = max(1, width // 2)
    for place in places:
        match place:
            case Box(x1, y1, x2, y2):
                x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
                pen.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=_EDGE, width=width + 2 * edge)
                pen.rectangle((x1, y1, x2, y2), outline=_INK, width=width)
            case Point(x, y):
                x, y, arm = x * scale, y * scale, 4 * width
                for ink, more in ((_EDGE, edge), (_INK, 0)):
                    pen.line((x - arm - more, y, x + arm + more, y), ink, width + 2 * more)
                    pen.line((x, y - arm - more, x, y + arm + more), ink, width + 2 * more)
