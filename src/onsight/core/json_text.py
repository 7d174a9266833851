"""JSON that a model or a client wrote as a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn


def read_json(text: str, integer: Callable[[str], object] = int) -> object:
    """The one value that `text` holds; `integer` reads numbers without a point.

    Raises ValueError for what is no JSON, as NaN and Infinity are none, or is nested too deeply to be read.
    """
    try:
        value: object = json.loads(text, parse_int=integer, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def is_json(text: str) -> bool:
    """Whether `text` is one JSON value and nothing else."""
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
