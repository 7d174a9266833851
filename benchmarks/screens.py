"""Pictures to ask about: drawn screens, never two alike, as PNG files and data URLs."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator

from PIL import Image

from training.draw import Style, draw_screen

SCREEN_PX = 256
WIDE_PX = (3840, 2160)
_FIRST_SEED = 700_000_000
"""Far from the seeds that Peek was trained and evaluated with."""


def screens() -> Iterator[Image.Image]:
    """Endlessly many different drawn screens of 256x256 px, always the same ones in the same order."""
    style = Style(built_in_only=True, sides=(SCREEN_PX, SCREEN_PX))
    seed = _FIRST_SEED
    while True:
        picture = draw_screen(seed, style).image
        seed += 1
        if picture.size == (SCREEN_PX, SCREEN_PX):
            yield picture


def wide_screens(count: int) -> list[bytes]:
    """So many different PNG files of 3840x2160 px: windows on a photo-like ground, a few megabytes each."""
    width, height = WIDE_PX
    windows = screens()
    files = []
    for number in range(count):
        chance = random.Random(number)
        grain = Image.frombytes("RGB", (width // 4, height // 4), chance.randbytes(width // 4 * (height // 4) * 3))
        ground = grain.point(lambda value: value // 8 + 90).resize(WIDE_PX, Image.Resampling.BICUBIC)
        for _ in range(12):
            window = next(windows).resize((768, 768))
            ground.paste(window, (chance.randrange(width - 768), chance.randrange(height - 768)))
        files.append(png(ground, compress_level=1))
    return files


def png(picture: Image.Image, *, compress_level: int = 6) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def data_url(file: bytes) -> str:
    """A PNG file as it travels in a request."""
    return "data:image/png;base64," + base64.b64encode(file).decode("ascii")
