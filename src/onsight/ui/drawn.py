"""Pictures of an answer as HTML, their pixels inside it: nothing is written to a disk and nothing left to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image as Pillow

from onsight.core.geometry import Box, Point, around
from onsight.core.messages import Image, Video
from onsight.media.heat_map import Heat, draw_heat
from onsight.media.marks import draw_marks
from onsight.ui.words import Words

_LARGE = 1280
_SMALL = 240
_MOST_FRAMES = 64


def marked(image: Image, places: Sequence[Point | Box], label: str) -> str:
    """The picture with `places` (px of the original) drawn on it."""
    picture = _pillow(image.pixels, image.width, image.height)
    picture.thumbnail((_LARGE, _LARGE))
    draw_marks(picture, places, picture.width / image.width)
    return _figure(picture, label)


def heated(image: Image, heat: Heat, scale: Heat, label: str) -> str:
    """The picture with `heat` laid over it; for `scale` see `draw_heat`."""
    picture = _pillow(image.pixels, image.width, image.height)
    picture.thumbnail((_LARGE, _LARGE))
    draw_heat(picture, heat, scale)
    return _figure(picture, label)


def cut_out(image: Image, box: Box, label: str) -> str:
    """The part of the picture in `box`, with the margin that a model without boxes is shown."""
    crop = image.cut_out(around(box, image.size))
    picture = _pillow(crop.pixels, crop.width, crop.height)
    picture.thumbnail((_LARGE, _LARGE))
    return _figure(picture, label)


def thumbnails(media: Sequence[Image | Video], words: Words) -> str:
    """What a message showed to the model: its pictures small, and of a video the frames that were looked at."""
    rows = []
    for item in media:
        match item:
            case Image(pixels, width, height):
                rows.append(_row([_small(pixels, width, height, words("chat.seen_image", width=width, height=height))]))
            case Video():
                rows.append(_video(item, words))
    return "".join(rows)


def _video(video: Video, words: Words) -> str:
    # A model that looks at more frames than fit a screen is shown by an even choice of them.
    count = len(video.timestamps)
    step = max(1, -(-count // _MOST_FRAMES))
    shown = list(zip(video.frames, video.timestamps, strict=True))[::step]
    frames = [
        _small(bytes(pixels), video.width, video.height, words("chat.frame_at", seconds=f"{seconds:.1f}"))
        for pixels, seconds in shown
    ]
    return f"<p>{escape(words('chat.seen_frames', count=count))}</p>" + _row(frames)


def _row(pictures: Sequence[str]) -> str:
    return f'<p class="seen">{" ".join(pictures)}</p>'


def _small(pixels: bytes, width: int, height: int, label: str) -> str:
    picture = _pillow(pixels, width, height)
    picture.thumbnail((_SMALL, _SMALL))
    return f'<img src="{_data_url(picture)}" alt="{escape(label)}" title="{escape(label)}">'


def _figure(picture: Pillow.Image, label: str) -> str:
    text = escape(label)
    return (
        f'<figure class="drawn"><img src="{_data_url(picture)}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )


def _pillow(pixels: bytes, width: int, height: int) -> Pillow.Image:
    return Pillow.frombytes("RGB", (width, height), pixels)


def _data_url(picture: Pillow.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
