"""OCR: the text in a picture as plain text and nothing else, or line by line, with boxes where the model gives them."""

from __future__ import annotations

from dataclasses import dataclass

from onsight.core.errors import UnreadableAnswer
from onsight.core.generation import Sampling
from onsight.core.geometry import Box, Point, lies_outside, to_original
from onsight.core.json_text import read_json
from onsight.models.card import ModelCard
from onsight.tasks.asking import PictureCall, ask, find_prompt
from onsight.tasks.chat import Answer, ChatCall

_MAX_TOKENS = 4096
_WITH_BOXES = "ocr_lines"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text. `box`: px of the upright original, None for a model that gives none."""

    text: str
    box: Box | None = None


def prompt(call: PictureCall, *, lines: bool = False) -> ChatCall:
    """The call that reads, for `read`, or with `lines` for `read_lines`.

    Raises Unsupported for a model that was not made for it.
    """
    name = _WITH_BOXES if lines and call.model.card.prompt(_WITH_BOXES) else "ocr"
    found = find_prompt(call.model, name)
    return ask(call, name, found.text, found, Sampling(max_tokens=_MAX_TOKENS))


def read(answer: Answer) -> str:
    """The text, its line breaks kept."""
    return answer.text.strip()


def read_lines(answer: Answer, card: ModelCard) -> list[Line]:
    """The lines that hold text. Raises UnreadableAnswer for boxes that cannot be read, or lie outside the picture."""
    if card.prompt(_WITH_BOXES) is None:
        return [Line(line.strip()) for line in answer.text.splitlines() if line.strip()]
    if answer.reason == "length":
        raise _unreadable(f"it was cut after {answer.usage.completion_tokens} tokens; send a larger max_tokens", answer)
    try:
        entries = read_json(answer.text, integer=float)
    except ValueError as error:
        raise _unreadable("it is no JSON", answer) from error
    if not isinstance(entries, list):
        raise _unreadable("it is no list", answer)
    return [_boxed(entry, answer, card) for entry in entries]


def _boxed(entry: object, answer: Answer, card: ModelCard) -> Line:
    """The card's schema has every entry so; a server that passes over schemas may answer with anything."""
    if card.convention is None:
        raise ValueError(f"card {card.name} has no convention")
    match entry:
        case {"text_content": str(text), "bbox_2d": [float(x1), float(y1), float(x2), float(y2)]}:
            corners = (Point(x1, y1), Point(x2, y2))
        case _:
            raise _unreadable("an entry is not a text_content with a bbox_2d of four numbers", answer)
    (view,) = answer.views
    for corner in corners:
        if lies_outside(corner, card.convention, view):
            raise _unreadable(f"it points to ({corner.x:g}, {corner.y:g}), outside the picture", answer)
    return Line(text, Box.between(*(to_original(corner, card.convention, view) for corner in corners)))


def _unreadable(why: str, answer: Answer) -> UnreadableAnswer:
    return UnreadableAnswer(f"the model's answer cannot be read as lines with boxes: {why}", answer=answer.text)
