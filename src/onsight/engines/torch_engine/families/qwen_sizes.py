"""The sizes that Qwen's models see pictures and frames in."""

from __future__ import annotations

import math

from onsight.core.errors import InvalidMedia

_MOST_STRETCHED = 200
"""Qwen's limit on width / height and height / width."""


def check_stretch(width: int, height: int, noun: str, param: str) -> None:
    """Refuse what is too long for its width (px). Raises InvalidMedia, which calls it `noun`, found at `param`."""
    if max(width, height) > _MOST_STRETCHED * min(width, height):
        raise InvalidMedia(
            f"{noun} is {width}x{height} px; this model sees none that is over {_MOST_STRETCHED} times"
            " longer than wide: crop it",
            param=param,
        )


def resized(width: int, height: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(width, height) that Qwen's smart_resize picks: multiples of `factor`, the area between `least` and `most` px.

    Python's rounding of halves to even counts here: it is what the models were trained with.
    """
    new_width, new_height = round(width / factor) * factor, round(height / factor) * factor
    if new_width * new_height > most:
        shrink = math.sqrt(width * height / most)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_width * new_height < least:
        grow = math.sqrt(least / (width * height))
        new_width = math.ceil(width * grow / factor) * factor
        new_height = math.ceil(height * grow / factor) * factor
    return new_width, new_height
