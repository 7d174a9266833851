"""What every family does with a picture before its own ways begin."""

from __future__ import annotations

import PIL.Image

from onsight.core.errors import Unsupported
from onsight.core.messages import Image, ImageOptions


def as_picture(image: Image) -> PIL.Image.Image:
    """As transformers' image processors take it; the pixels are copied."""
    return PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)


def refuse_pixel_bounds(options: ImageOptions, parts: str) -> None:
    """For families that cut pictures into `parts` ("tiles") of one size. Raises Unsupported for bounds in pixels."""
    for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
        if value is not None:
            raise Unsupported(
                f"{name} is {value}, but this model sees {parts} of one size; use detail 'low' or 'high' instead",
                param=f"messages.image_url.{name}",
            )
