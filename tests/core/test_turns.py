"""Callers take turns, whoever leaves takes nobody's, and a turn is never lost."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack

import pytest

from onsight.core.turns import Line, Turns


def test_callers_take_turns_and_each_ones_own_keep_their_order() -> None:
    line: Line[str] = Line()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        line.add(item[0], item)
    assert list(line) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert [line.pop() for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    line.add("b", "b2")
    assert list(line) == ["c2", "a3", "b2"]
    assert [line.pop() for _ in range(3)] == ["c2", "a3", "b2"]
    assert not line
    with pytest.raises(KeyError):
        line.pop()


def test_who_leaves_the_line_takes_nobodys_turn() -> None:
    line: Line[str] = Line()
    for item in ("a1", "a2", "b1"):
        line.add(item[0], item)
    line.discard("a", "a1")
    line.discard("a", "never there")
    line.discard("z", "nor he")
    assert (list(line), len(line)) == (["a2", "b1"], 2)


async def test_the_hundred_requests_of_one_keep_nobody_else_waiting_behind_them() -> None:
    turns, done = Turns(2), list[str]()

    async def work(caller: str) -> None:
        async with turns.turn(caller):
            await asyncio.sleep(0)
            done.append(caller)

    many = [asyncio.create_task(work("many")) for _ in range(100)]
    await asyncio.sleep(0)
    assert turns.waiting == 98
    one = asyncio.create_task(work("one"))
    await asyncio.gather(*many, one)
    assert done.index("one") <= 6
    assert turns.waiting == 0


async def test_a_turn_that_comes_when_its_caller_leaves_goes_to_the_next() -> None:
    turns = Turns(1)
    async with AsyncExitStack() as first:
        await first.enter_async_context(turns.turn("a"))
        leaving, staying = (asyncio.create_task(turns._begin(caller)) for caller in ("b", "c"))
        await asyncio.sleep(0)
        await first.aclose()
        leaving.cancel()
        await asyncio.wait_for(staying, 5)
    turns._end("c")
    async with asyncio.timeout(5), turns.turn("d"):
        pass
    assert not turns._line._held, "nobody holds anything, and nobody's name is kept"


async def test_a_place_goes_to_who_holds_fewest() -> None:
    turns, began, ends = Turns(4), list[str](), dict[str, asyncio.Event]()

    async def work(caller: str, name: str) -> None:
        async with turns.turn(caller):
            began.append(name)
            await ends.setdefault(name, asyncio.Event()).wait()

    async def end(name: str) -> None:
        ends[name].set()
        await asyncio.sleep(0.01)

    names = [f"long{number}" for number in range(8)] + [f"short{number}" for number in range(5)]
    tasks = [asyncio.create_task(work(name.rstrip("0123456789"), name)) for name in names]
    await asyncio.sleep(0)
    assert (began, turns.waiting) == (names[:4], 9)
    await end("long0")
    await end("short0")
    await end("short1")
    assert began[4:] == ["short0", "short1", "short2"], "three of the long ones are at work all the time"
    await end("long1")
    assert began[7:] == ["short3"], "two of each"
    await end("short2")
    assert began[8:] == ["short4"]
    await end("long2")
    await end("long3")
    assert began[9:] == ["long4", "long5"], "nobody else waits"
    for name in names:
        ends.setdefault(name, asyncio.Event()).set()
    await asyncio.gather(*tasks)
    assert (turns._free, turns._line._held) == (4, {})


async def test_who_needs_much_is_waited_for_and_not_passed() -> None:
    room, began = Turns(10), list[str]()

    async def work(caller: str, places: int, until: asyncio.Event) -> None:
        async with room.turn(caller, places):
            began.append(caller)
            await until.wait()

    first, rest = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(work(*one)) for one in (("a", 6, first), ("b", 99, rest), ("c", 4, rest))]
    await asyncio.sleep(0)
    assert (began, room.waiting) == (["a"], 2)
    first.set()
    await asyncio.sleep(0.01)
    assert (began, room.waiting) == (["a", "b"], 1), "more than all is all"
    rest.set()
    await asyncio.gather(*tasks)
    assert (began, room._free) == (["a", "b", "c"], 10)


async def test_who_holds_fewer_passes_a_large_need_and_who_holds_none_is_passed_by_nobody() -> None:
    room, began, ends = Turns(10), list[str](), dict[str, asyncio.Event]()

    async def work(name: str, places: int) -> None:
        async with room.turn(name[0], places):
            began.append(name)
            await ends.setdefault(name, asyncio.Event()).wait()

    async def ask(name: str, places: int) -> None:
        tasks.append(asyncio.create_task(work(name, places)))
        await asyncio.sleep(0.01)

    async def end(name: str) -> None:
        ends[name].set()
        await asyncio.sleep(0.01)

    tasks: list[asyncio.Task[None]] = []
    for name, places in (("a1", 6), ("a2", 6), ("b1", 3)):
        await ask(name, places)
    assert began == ["a1", "b1"], "what is free is not kept for who holds most of it"
    await ask("c1", 2)
    assert (began, room.waiting) == (["a1", "b1"], 2)
    await end("a1")
    assert began[2:] == ["a2"], "and once they hold none, it is theirs: they waited longest"
    await ask("d1", 1)
    await end("b1")
    assert began[3:] == ["c1", "d1"]
    for name in ("a2", "c1", "d1"):
        ends[name].set()
    await asyncio.gather(*tasks)
    assert (room._free, room._line._held) == (10, {})


async def test_a_turn_lasts_for_as_long_as_its_work_even_where_its_caller_has_left() -> None:
    turns, ends = Turns(1), [asyncio.get_running_loop().create_future() for _ in range(3)]
    leaving = asyncio.create_task(turns.through("a", lambda: ends[0]))
    other = asyncio.create_task(turns.through("b", lambda: ends[1]))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert (leaving.cancelled(), turns.waiting, turns._free) == (True, 1, 0), "the work goes on, in its place"
    assert not other.done()
    complaints = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    ends[0].set_exception(ValueError("nobody hears it"))
    ends[1].set_result("done")
    assert await asyncio.wait_for(other, 5) == "done"
    ends[2].set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await turns.through("c", lambda: ends[2])
    await asyncio.sleep(0)
    del leaving, other
    gc.collect()
    assert (turns._free, turns._line._held, complaints) == (1, {}, [])


async def test_who_needs_much_and_leaves_lets_those_behind_go_on() -> None:
    room = Turns(10)
    async with room.turn("a", 6):
        much, little = (asyncio.create_task(room._begin(*one)) for one in (("b", 9), ("c", 4)))
        await asyncio.sleep(0)
        much.cancel()
        await asyncio.wait_for(little, 5)
    assert (room._free, room.waiting) == (6, 0)


async def test_who_is_cancelled_in_line_is_passed_over() -> None:
    turns = Turns(1)
    async with turns.turn("a"):
        leaving, staying = (asyncio.create_task(turns._begin(caller)) for caller in ("b", "c"))
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait_for(staying, 5)
    assert turns.waiting == 0
