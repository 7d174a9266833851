"""What the task routes answer: texts, plain or streamed, and places in pixels of the upright original."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass

from pydantic import BaseModel

from onsight.api.openai.answers import CompletionUsage, usage_of
from onsight.core.generation import Finished, FinishReason, TextDelta, Usage
from onsight.core.geometry import Box, Point, Size, to_relative
from onsight.tasks.chat import Answer, ChoiceEvent
from onsight.tasks.locate import Instance, Located
from onsight.tasks.ocr import Line

_BETWEEN_PAGES = "\n\n"


class TextChunk(BaseModel):
    """One event of a streamed answer; the last one has `finish_reason` and `usage`. Of a PDF, the texts of one `page`
    end with a chunk that has its `finish_reason`, and a chunk without a page stands between two of them."""

    model: str
    text: str
    page: int | None = None
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


class LineObject(BaseModel):
    """A line of text. `box`, in px of the upright original, and `box_relative`, in shares of its width and height, are
    there only where the model gives boxes."""

    text: str
    box: BoxObject | None = None
    box_relative: BoxObject | None = None


class PageObject(BaseModel):
    """What was said of one page of a PDF, whose number counts from 1."""

    page: int
    text: str
    lines: list[LineObject] | None = None
    finish_reason: FinishReason


class TextAnswer(BaseModel):
    """A caption, the text in a picture, or a description. `lines` is there where it was asked for. Of a PDF, `pages`
    has each page's own, and `text` is theirs with an empty line between."""

    model: str
    text: str
    lines: list[LineObject] | None = None
    pages: list[PageObject] | None = None
    finish_reason: FinishReason
    usage: CompletionUsage


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


@dataclass(frozen=True, slots=True)
class Said:
    """What was made of the answer about a page; `page` is None for a picture, `lines` where none were asked for."""

    page: int | None
    answer: Answer
    text: str
    lines: Sequence[Line] | None = None


def text_answer(model: str, said: Sequence[Said]) -> TextAnswer:
    """A plain answer; what is said of each page counts its own prompt."""
    lines = [_line(line, one.answer) for one in said for line in one.lines or ()]
    return TextAnswer(
        model=model,
        text=_BETWEEN_PAGES.join(one.text for one in said),
        lines=lines if said[0].lines is not None else None,
        pages=[_page(one.page, one) for one in said if one.page is not None] or None,
        finish_reason=_reason([one.answer.reason for one in said]),
        usage=usage_of([_sum([one.answer.usage for one in said])]),
    )


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
    index, began, held = 0, False, ""
    ends: list[Finished] = []
    async with aclosing(events):
        async for choice in events:
            if choice.index != index:
                index, began, held = choice.index, False, ""
                yield _json(TextChunk(model=model, text=_BETWEEN_PAGES))
            match choice.event:
                case TextDelta(text):
                    held += text if began else text.lstrip()
                    ready = held.rstrip()
                    if ready:
                        began, held = True, held[len(ready) :]
                        yield _json(TextChunk(model=model, text=ready, page=choice.page))
                case Finished(reason) as end:
                    ends.append(end)
                    if choice.page is not None:
                        yield _json(TextChunk(model=model, text="", page=choice.page, finish_reason=reason))
    usage = usage_of([_sum([end.usage for end in ends])])
    yield _json(TextChunk(model=model, text="", finish_reason=_reason([end.reason for end in ends]), usage=usage))


def _json(chunk: TextChunk) -> bytes:
    return chunk.model_dump_json(exclude_none=True).encode()


def _page(number: int, said: Said) -> PageObject:
    lines = None if said.lines is None else [_line(line, said.answer) for line in said.lines]
    return PageObject(page=number, text=said.text, lines=lines, finish_reason=said.answer.reason)


def _line(line: Line, answer: Answer) -> LineObject:
    if line.box is None:
        return LineObject(text=line.text)
    relative = _relative(line.box, answer.views[0].original)
    return LineObject(text=line.text, box=_box(line.box), box_relative=_box(relative))


def _reason(reasons: Sequence[FinishReason]) -> FinishReason:
    """One reason for several answers: cut, if any of them was."""
    cuts: tuple[FinishReason, ...] = ("length", "content_filter")
    return next((cut for cut in cuts if cut in reasons), reasons[0])


def _sum(usages: Sequence[Usage]) -> Usage:
    """The cost of answers that each had a prompt of its own."""
    return Usage(*map(sum, zip(*map(astuple, usages), strict=True)))


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
