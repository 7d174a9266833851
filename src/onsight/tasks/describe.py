"""Describe: say what is inside a box of a picture.

A model that was made for it is asked about the box in its own coordinates; every other one is shown the box alone, with
a margin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onsight.core.errors import InvalidRequest
from onsight.core.generation import Sampling
from onsight.core.geometry import Box, Point, Size, View, around, to_model
from onsight.core.messages import Image, Message, Text
from onsight.models.card import ModelCard, Prompt
from onsight.tasks.asking import PictureCall, ask, fill, find_prompt
from onsight.tasks.chat import Answer, ChatCall

_MAX_TOKENS = 256


def prompt(call: PictureCall, box: Box) -> ChatCall:
    """The call that describes what is in `box`, in px of the upright original.

    Raises Unsupported for a model that was not made for it. The call raises InvalidRequest (`box`) when its picture is
    open and does not hold the box.
    """
    found = find_prompt(call.model, "describe")
    asked = ask(call, "describe", None, found, Sampling(max_tokens=_MAX_TOKENS))
    return replace(asked, compose=_point_out(box, call.model.card, found) if found.names_box else _cut_out(box, found))


def read(answer: Answer) -> str:
    """The description."""
    return answer.text.strip()


def _point_out(box: Box, card: ModelCard, found: Prompt) -> Callable[[tuple[Message, ...]], tuple[Message, ...]]:
    def compose(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        image = _picture(messages, box)
        return (Message("user", (image, Text(fill(found.text, _in_model(box, card, image.size))))),)

    return compose


def _cut_out(box: Box, found: Prompt) -> Callable[[tuple[Message, ...]], tuple[Message, ...]]:
    def compose(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        image = _picture(messages, box)
        return (Message("user", (image.cut_out(around(box, image.size)), Text(found.text))),)

    return compose


def _picture(messages: tuple[Message, ...], box: Box) -> Image:
    """The call's one picture. Raises InvalidRequest when `box` does not lie in it."""
    (image,) = messages[0].images
    if box.x2 > image.width or box.y2 > image.height:
        raise InvalidRequest(
            f"box ends at ({box.x2:g}, {box.y2:g}), but the upright picture is {image.width}x{image.height} px;"
            " send x1, y1, x2, y2 in its pixels",
            param="box",
        )
    return image


def _in_model(box: Box, card: ModelCard, size: Size) -> dict[str, str]:
    """The corners as the model writes them: whole numbers, but for shares of 1."""
    if card.convention is None or card.convention == "resized_pixels":
        raise ValueError(f"card {card.name}: its convention {card.convention} is not known before the prompt")
    # What was seen does not matter to these conventions.
    view = View(size, size)
    digits = 3 if card.convention == "0..1" else 0
    first, last = (to_model(point, card.convention, view) for point in (Point(box.x1, box.y1), Point(box.x2, box.y2)))
    places = {"x1": first.x, "y1": first.y, "x2": last.x, "y2": last.y}
    return {name: f"{value:.{digits}f}" for name, value in places.items()}
