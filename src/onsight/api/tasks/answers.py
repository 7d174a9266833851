"""What the task routes answer: texts, plain or streamed, and places in pixels of the upright original."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel

from onsight.api.openai.answers import CompletionUsage, usage_of
from onsight.core.generation import Finished, FinishReason, TextDelta
from onsight.core.geometry import Box, Point, Size, to_relative
from onsight.tasks.chat import Answer, ChoiceEvent
from onsight.tasks.locate import Instance, Located


class TextAnswer(BaseModel):
    """A caption, the text in a picture, or a description."""

    model: str
    text: str
    finish_reason: FinishReason
    usage: CompletionUsage


class TextChunk(BaseModel):
    """One event of a streamed answer; the last one has `finish_reason` and `usage`."""

    model: str
    text: str
    finish_reason: FinishReason | None = None
    usage: CompletionUsage | None = None


class PointObject(BaseModel):
    x: float
    y: float


class BoxObject(BaseModel):
    x1: float
    y1: float
    x2: float
    y2: float


class SizeObject(BaseModel):
    """A picture's size in px."""

    width: int
    height: int


class InstanceObject(BaseModel):
    """One place: in px of the upright original, and in shares of its width and height. `box` is null where points were
    asked for; with a box, `point` is its centre. `confidence`: the model's own probability of these numbers, 0..1."""

    point: PointObject
    box: BoxObject | None
    point_relative: PointObject
    box_relative: BoxObject | None
    confidence: float


class LocateAnswer(BaseModel):
    """Every place, in the model's order. `original`: the upright picture's size; `seen`: the size that the model saw;
    `raw`: what it said, word for word, in its own coordinates (`convention`)."""

    model: str
    instances: list[InstanceObject]
    original: SizeObject
    seen: SizeObject
    convention: str | None
    raw: str
    usage: CompletionUsage


def text_answer(model: str, text: str, answer: Answer) -> TextAnswer:
    """A plain answer."""
    return TextAnswer(model=model, text=text, finish_reason=answer.reason, usage=usage_of([answer.usage]))


def locate_answer(model: str, convention: str | None, located: Located, answer: Answer) -> LocateAnswer:
    """The places, in every form that a client may want."""
    return LocateAnswer(
        model=model,
        instances=[_instance(instance, located.view.original) for instance in located.instances],
        original=_size(located.view.original),
        seen=_size(located.view.seen),
        convention=convention,
        raw=located.raw,
        usage=usage_of([answer.usage]),
    )


async def text_chunks(events: AsyncGenerator[ChoiceEvent, None], model: str) -> AsyncGenerator[bytes, None]:
    """The streamed answer, one chunk's JSON at a time; together its texts are the plain answer's. Closes `events`.

    White space is held back until more text comes, since at either end it is no part of the answer.
    """
    began, held = False, ""
    async with aclosing(events):
        async for choice in events:
            match choice.event:
                case TextDelta(text):
                    held += text if began else text.lstrip()
                    ready = held.rstrip()
                    if ready:
                        began, held = True, held[len(ready) :]
                        yield TextChunk(model=model, text=ready).model_dump_json(exclude_none=True).encode()
                case Finished(reason, usage):
                    last = TextChunk(model=model, text="", finish_reason=reason, usage=usage_of([usage]))
                    yield last.model_dump_json().encode()


def _instance(instance: Instance, size: Size) -> InstanceObject:
    box = instance.box
    return InstanceObject(
        point=_point(instance.point),
        box=None if box is None else _box(box),
        point_relative=_point(to_relative(instance.point, size)),
        box_relative=None if box is None else _box(_relative(box, size)),
        confidence=instance.confidence,
    )


def _relative(box: Box, size: Size) -> Box:
    first, last = to_relative(Point(box.x1, box.y1), size), to_relative(Point(box.x2, box.y2), size)
    return Box(first.x, first.y, last.x, last.y)


def _point(point: Point) -> PointObject:
    return PointObject(x=point.x, y=point.y)


def _box(box: Box) -> BoxObject:
    return BoxObject(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2)


def _size(size: Size) -> SizeObject:
    return SizeObject(width=size.width, height=size.height)
