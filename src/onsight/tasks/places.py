"""Places in what a model says: found in its text by the notations of its card, and put into the original's pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.geometry import Convention, Point, View, to_original
from onsight.core.messages import ImageRef
from onsight.models.card import ModelCard, Notation
from onsight.tasks.chat import Answer, ChatCall

Part = TypeVar("Part")

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_TWO, _FOUR = (rf"\s*{_NUMBER}" + rf"\s*,\s*{_NUMBER}" * more + r"\s*" for more in (1, 3))

PATTERNS: Mapping[Notation, re.Pattern[str]] = {
    "pair": re.compile(rf"\({_TWO}\)"),
    "click": re.compile(rf'"x":\s*{_NUMBER}\s*,\s*"y":\s*{_NUMBER}'),
    "points": re.compile(rf'"point_2d":\s*\[{_TWO}\]'),
    "boxes": re.compile(rf'"bbox_2d":\s*\[{_FOUR}\]'),
}
"""Notation -> one place in it; each group is a number, x and y in turn."""


@dataclass(frozen=True, slots=True)
class Place:
    """A point or a box as the model wrote it. `corners`: one point or two, in the model's own space.

    `spans`: where each number stands in the text, [start, stop).
    """

    corners: tuple[Point, ...]
    spans: tuple[tuple[int, int], ...]


def find_places(text: str, notation: Notation) -> list[Place]:
    """Every place that `text` holds in that notation."""
    found = []
    for match in PATTERNS[notation].finditer(text):
        numbers = [float(number) for number in match.groups()]
        spans = tuple(match.span(group) for group in range(1, len(numbers) + 1))
        found.append(Place(tuple(Point(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)), spans))
    return found


def check_mapping(call: ChatCall, card: ModelCard, *, stream: bool) -> ChatCall:
    """The call, in which only a picture will do, no PDF. Refuses, naming `coordinates`, one whose answers `in_original`
    could not map."""
    if card.convention is None or not card.notations:
        raise Unsupported(
            f"coordinates is 'original', but {card.title} was not made to give any; leave it out", param="coordinates"
        )
    if stream:
        raise Unsupported(
            "coordinates is 'original', which needs the whole answer; leave `stream` out", param="coordinates"
        )
    if call.sampling.logprobs:
        raise Unsupported(
            "coordinates is 'original', after which the tokens are no longer the text's; leave `logprobs` out",
            param="coordinates",
        )
    if call.tools is not None:
        raise Unsupported(
            "coordinates is 'original', which maps what is said, not the arguments of calls; leave `tools` out",
            param="coordinates",
        )
    images = [part for draft in call.drafts for part in draft.parts if isinstance(part, ImageRef)]
    if len(images) != 1:
        raise InvalidRequest(
            f"coordinates is 'original', but the conversation has {len(images)} pictures; it needs exactly one",
            param="coordinates",
        )
    if images[0].pages is not None and images[0].pages.spans:
        raise InvalidRequest("coordinates is 'original', which is for a picture; leave pages out", param="coordinates")
    drafts = (replace(draft, parts=tuple(_picture_only(part) for part in draft.parts)) for draft in call.drafts)
    return replace(call, drafts=tuple(drafts))


def _picture_only(part: Part) -> Part | ImageRef:
    return replace(part, pages=None) if isinstance(part, ImageRef) else part


def in_original(answer: Answer, card: ModelCard) -> Answer:
    """`answer` with every place that it names in whole pixels of the upright original; the other words stay."""
    if card.convention is None:
        raise ValueError(f"card {card.name} has no convention")
    (view,) = answer.views
    text = answer.text
    for notation in card.notations:
        for place in reversed(find_places(text, notation)):
            text = _rewritten(text, place, card.convention, view)
    return replace(answer, text=text)


def _rewritten(text: str, place: Place, convention: Convention, view: View) -> str:
    """`text` with the numbers of one place mapped; the last is written first, so that the others' spans still hold."""
    points = (to_original(corner, convention, view) for corner in place.corners)
    numbers = [round(number) for point in points for number in (point.x, point.y)]
    for (start, stop), number in reversed(list(zip(place.spans, numbers, strict=True))):
        text = f"{text[:start]}{number}{text[stop:]}"
    return text
