"""Locate: where a target is, in pixels of the upright original, with the model's own probability of what it said."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

from onsight.core.errors import UnreadableAnswer
from onsight.core.generation import Sampling
from onsight.core.geometry import Box, Point, View, lies_outside, to_original
from onsight.core.json_text import is_json
from onsight.models.card import ModelCard, Notation, Prompt
from onsight.tasks.asking import PictureCall, ask, fill, find_prompt
from onsight.tasks.chat import Answer, ChatCall
from onsight.tasks.places import PATTERNS, Place, find_places

Shape = Literal["point", "box"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for: the best instance of `target` or all of them, as points or as boxes."""

    target: str
    every: bool = False
    shape: Shape = "point"

    @property
    def prompt_name(self) -> str:
        """The card's prompt for it."""
        names = {"point": ("locate", "locate_all"), "box": ("locate_box", "locate_all_boxes")}
        return names[self.shape][self.every]


@dataclass(frozen=True, slots=True)
class Instance:
    """One place. `point`: px of the upright original, a box's centre. `confidence`: the probability, 0..1, that the
    model gave to the numbers it wrote, each given those before."""

    point: Point
    box: Box | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Located:
    """What was found, in the model's order. `raw`: its answer, word for word. `view`: the sizes that were used."""

    instances: tuple[Instance, ...]
    view: View
    raw: str


def prompt(call: PictureCall, wanted: Wanted) -> ChatCall:
    """The call that locates. Raises Unsupported for a model, or a shape, that its card does not offer."""
    found = _find(call, wanted)
    sampling = Sampling(max_tokens=4096 if wanted.every else 256, logprobs=True)
    return ask(call, wanted.prompt_name, fill(found.text, {"target": wanted.target}), found, sampling)


def read(answer: Answer, card: ModelCard, wanted: Wanted) -> Located:
    """The places in the answer. Raises UnreadableAnswer when it holds none, too many, or one outside the picture."""
    found = card.prompt(wanted.prompt_name)
    if found is None or found.notation is None or card.convention is None:
        raise ValueError(f"card {card.name} has no {wanted.prompt_name} with a notation")
    places = _places(answer, found.notation, wanted)
    (view,) = answer.views
    for place in places:
        for corner in place.corners:
            if lies_outside(corner, card.convention, view):
                raise _unreadable(f"it points to ({corner.x:g}, {corner.y:g}), outside the picture", answer)
    tokens, instances = _Tokens(answer), []
    for place in places:
        corners = [to_original(corner, card.convention, view) for corner in place.corners]
        box = Box.between(*corners) if len(corners) == 2 else None
        point = corners[0] if box is None else box.centre
        instances.append(Instance(point, box, tokens.probability(place)))
    return Located(tuple(instances), view, answer.text)


def _find(call: PictureCall, wanted: Wanted) -> Prompt:
    plain = Wanted(wanted.target, shape=wanted.shape)
    # Which of the two wishes is at fault: the shape alone, or that all are asked for.
    find_prompt(call.model, plain.prompt_name, param="shape")
    return find_prompt(call.model, wanted.prompt_name, param="all")


def _places(answer: Answer, notation: Notation, wanted: Wanted) -> list[Place]:
    """The places of an answer that is nothing but places."""
    if answer.reason == "length":
        raise _unreadable(f"it was cut after {answer.usage.completion_tokens} tokens; send a larger max_tokens", answer)
    places = find_places(answer.text, notation)
    clean = is_json(answer.text) if notation != "pair" else not PATTERNS[notation].sub("", answer.text).strip()
    if not clean or (not places and not wanted.every) or (len(places) > 1 and not wanted.every):
        raise _unreadable(f"it should be {'places' if wanted.every else 'one place'} and nothing else", answer)
    return places


def _unreadable(why: str, answer: Answer) -> UnreadableAnswer:
    return UnreadableAnswer(f"the model's answer cannot be read as a place: {why}", answer=answer.text)


class _Tokens:
    """Where each token of an answer stands in its text, and how likely it was."""

    def __init__(self, answer: Answer) -> None:
        self._text = answer.text
        self._logprobs = [token.chosen.logprob for token in answer.logprobs]
        self._starts: list[int] = []
        self._stops: list[int] = []
        text, at = answer.text.encode(), 0
        for token in answer.logprobs:
            data = token.chosen.data
            # A special token, or a first blank that was dropped, has no place in the text.
            if not text.startswith(data, at):
                data = data.removeprefix(b" ")
            self._starts.append(at)
            at += len(data) if text.startswith(data, at) else 0
            self._stops.append(at)

    def probability(self, place: Place) -> float:
        """The product of the probabilities of the tokens that hold the place's numbers."""
        held: set[int] = set()
        for start, stop in place.spans:
            first = len(self._text[:start].encode())
            last = first + stop - start
            held.update(range(bisect_right(self._stops, first), bisect_left(self._starts, last)))
        return min(1.0, math.exp(sum(self._logprobs[index] for index in held)))
