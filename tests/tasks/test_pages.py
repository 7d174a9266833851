"""Pages are worked on several at once and told one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest

from onsight.core.engine import EngineStatus
from onsight.core.errors import EngineFailed
from onsight.core.generation import Event, Finished, GenerateRequest, TextDelta, Usage
from onsight.core.messages import Image, Message, Text
from onsight.tasks.pages import in_turn, page_requests


@dataclass
class Backwards:
    """An engine that finishes the pages it has last first, and fails on page `bad`."""

    bad: int = 0
    running: int = 0
    most: int = 0
    closed: list[int] = field(default_factory=list)
    context_tokens: int = 99

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def status(self) -> EngineStatus:
        return EngineStatus("ready", "none")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        page = request.messages[-1].images[0].page or 0
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(20 - page):
                await asyncio.sleep(0)
            if page == self.bad:
                raise EngineFailed("it broke")
            yield TextDelta(str(page))
            yield Finished("stop", Usage(1, 1))
        finally:
            self.running -= 1
            self.closed.append(page)


def request(count: int) -> GenerateRequest:
    pages = [replace(Image.of(b"abc", 1, 1), page=number) for number in range(1, count + 1)]
    return GenerateRequest((Message("system", (Text("be brief"),)), Message("user", (*pages, Text("what?")))))


def test_each_page_is_asked_about_with_all_that_is_said_around_it() -> None:
    first, second = page_requests(request(2))
    assert [image.page for image in (*first.messages[1].images, *second.messages[1].images)] == [1, 2]
    for one in (first, second):
        assert one.messages[0] == request(2).messages[0]
        assert one.messages[1].parts[1:] == (Text("what?"),)


async def tell(engine: Backwards, count: int, words: list[str]) -> None:
    async with aclosing(in_turn(engine, page_requests(request(count)))) as events:
        async for one in events:
            words.append(one.event.text if isinstance(one.event, TextDelta) else f"end {one.index}")


async def test_answers_come_in_order_though_pages_are_worked_on_together() -> None:
    engine, words = Backwards(), list[str]()
    await tell(engine, 7, words)
    assert words == [word for number in range(7) for word in (str(number + 1), f"end {number}")]
    assert 1 < engine.most <= 4
    assert engine.closed != sorted(engine.closed)


async def test_an_error_comes_in_its_pages_turn_and_stops_the_rest() -> None:
    engine, words = Backwards(bad=3), list[str]()
    with pytest.raises(EngineFailed):
        await tell(engine, 9, words)
    assert words == ["1", "end 0", "2", "end 1"]
    assert engine.running == 0


async def test_closing_it_cancels_every_page() -> None:
    engine = Backwards()
    events = in_turn(engine, page_requests(request(9)))
    await anext(events)
    await events.aclose()
    assert engine.running == 0
    assert len(engine.closed) < 9
