"""Callers take turns, whoever leaves takes nobody's, and a turn is never lost."""

from __future__ import annotations

import asyncio
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
    turns._end()
    async with asyncio.timeout(5), turns.turn("d"):
        pass


async def test_who_is_cancelled_in_line_is_passed_over() -> None:
    turns = Turns(1)
    async with turns.turn("a"):
        leaving, staying = (asyncio.create_task(turns._begin(caller)) for caller in ("b", "c"))
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait_for(staying, 5)
    assert turns.waiting == 0
