"""More than the server can do is refused before it is begun, and what takes too long ends as it should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import pytest

from onsight.core.errors import DeadlineMissed, Overloaded
from onsight.core.messages import Draft, ImageRef, Text
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.media.door import MediaDoor
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat, ChatCall, collect
from onsight.tasks.deadline import Deadline
from onsight.tasks.roster import Loaded, Roster
from tests.api.conftest import CARD, Bench, hello, until
from tests.media.pictures import plain

Build = Callable[..., Bench]

SIDE = 100


class GuardedDoor(MediaDoor):
    """The real door, which counts the pictures that were decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def _draw(self, *given: object, **more: object) -> object:  # type: ignore[override]
        self.drawn += 1
        return super()._draw(*given, **more)  # type: ignore[arg-type]


def call(pictures: int) -> ChatCall:
    shown = tuple(ImageRef(plain(size=(SIDE, SIDE))) for _ in range(pictures))
    return ChatCall((Draft("user", (*shown, Text("hi"))),))


@contextmanager
def limited(limits: QueueLimits, script: FakeScript) -> Iterator[tuple[Chat, Admission, GuardedDoor]]:
    engine, admission, door = FakeEngine(script), Admission(8, limits), GuardedDoor()
    engine._state = "ready"
    yield Chat(Roster([Loaded(("fake",), CARD, engine, 0)]), door, admission), admission, door
    door.close()


async def test_pixels_beyond_the_bound_are_refused_before_they_are_decoded() -> None:
    limits = QueueLimits(pixels=3 * SIDE * SIDE)
    with limited(limits, FakeScript(step_s=0.05)) as (chat, admission, door):
        # Alone a request may have more than the bound, or it could never be answered.
        large = asyncio.create_task(collect(chat.stream(call(4))))
        await until(lambda: door.drawn == 4)
        assert admission.pixels_held == 4 * SIDE * SIDE
        with pytest.raises(Overloaded, match="--max-queue-pixels") as caught:
            await collect(chat.stream(call(1)))
        assert (caught.value.retry_after_s, door.drawn) == (1, 4)
        assert await collect(chat.stream(call(0)))
        await large
        assert await collect(chat.stream(call(1)))
    assert (admission.pixels_held, admission.taken, admission.refused_total) == (0, 0, 1)


async def test_pictures_that_came_along_are_counted_before_the_wait_in_line() -> None:
    with limited(QueueLimits(pixels=3 * SIDE * SIDE, at_work=1), FakeScript(step_s=0.05)) as (chat, admission, door):
        running = asyncio.create_task(collect(chat.stream(call(2))))
        await until(lambda: door.drawn == 2)
        waiting = asyncio.create_task(collect(chat.stream(call(1))))
        await until(lambda: admission.waiting == 1)
        assert admission.pixels_held == 3 * SIDE * SIDE
        with pytest.raises(Overloaded, match="--max-queue-pixels"):
            await collect(chat.stream(call(1)))
        assert (admission.waiting, door.drawn) == (1, 2), "refused without a wait, and nothing was opened for it"
        assert await running
        assert await waiting
        assert door.drawn == 3
    assert (admission.pixels_held, admission.taken) == (0, 0)


async def test_an_answer_that_is_late_before_its_first_piece_is_504_and_is_not_tried_again(build: Build) -> None:
    bench = build(FakeScript(step_s=5), limits=QueueLimits(timeout_s=0.05))
    answer = await bench.chat()
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert "--request-timeout-s" in error["message"]
    assert (bench.admission.taken, bench.engine.status().running) == (0, 0)
    assert [record.reason for record in bench.records] == ["deadline_exceeded"]


async def test_an_answer_that_is_late_in_the_middle_ends_with_an_error_event(build: Build) -> None:
    bench = build(FakeScript(step_s=0.05), limits=QueueLimits(timeout_s=0.4))
    answer = await bench.chat(messages=hello("long " * 40), stream=True)
    *pieces, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert answer.status_code == 200
    assert len(pieces) > 1
    assert json.loads(last)["error"]["code"] == "deadline_exceeded"
    assert (bench.admission.taken, bench.engine.status().running) == (0, 0)


async def come(count: int) -> AsyncGenerator[int, None]:
    for number in range(count):
        yield number


async def test_what_came_long_ago_and_is_taken_too_late_is_late() -> None:
    taken = Deadline(0.05).follow(come(2))
    assert await anext(taken) == 0
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineMissed):
        await anext(taken)


async def test_an_answer_that_was_taken_whole_is_not_late_afterwards() -> None:
    taken = Deadline(0.05).follow(come(1))
    assert await anext(taken) == 0
    await asyncio.sleep(0.1)
    with pytest.raises(StopAsyncIteration):
        await anext(taken)


async def test_waiting_in_line_counts() -> None:
    with limited(QueueLimits(at_work=1, timeout_s=0.3), FakeScript(step_s=0.05)) as (chat, admission, _):
        made = await asyncio.gather(*(collect(chat.stream(call(0))) for _ in range(3)), return_exceptions=True)
        assert [isinstance(one, DeadlineMissed) for one in made].count(True) >= 2
        assert (admission.taken, admission.waiting) == (0, 0)


async def test_a_time_out_of_something_else_stays_what_it_is() -> None:
    async def breaks() -> None:
        raise TimeoutError("a socket's")

    with pytest.raises(TimeoutError, match="a socket's"):
        await Deadline(60).within(breaks())
