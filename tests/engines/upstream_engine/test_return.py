"""A child that dies or hangs: who waits for its return, for how long, and what it may cost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from onsight.core.errors import Unavailable
from onsight.engines.upstream_engine import Address, Child, ChildCommand, Patience, UpstreamEngine
from tests.engines.contract import ask, events_of, text_of
from tests.engines.upstream_engine.stand_in_vllm import POISON

SLOW = Patience(pause_s=1.5, stop_s=0.5)
"""Away for longer than all tries of a request together."""


@asynccontextmanager
async def started(folder: Path, patience: Patience) -> AsyncIterator[tuple[UpstreamEngine, Child, int]]:
    """The engine before a stand-in for vLLM, with the child and its process id."""
    socket = str(folder / "own" / "vllm.sock")
    Path(socket).parent.mkdir()
    program = [sys.executable, "-m", "tests.engines.upstream_engine.stand_in_vllm", "serve", "org/m", "--uds", socket]
    child = Child(ChildCommand("vllm", program, socket=socket), patience)
    engine = UpstreamEngine(Address("http://vllm", socket), child)
    await engine.start()
    assert child.process_id is not None
    try:
        yield engine, child, child.process_id
    finally:
        await engine.close()


async def until(engine: UpstreamEngine, state: str) -> None:
    async with asyncio.timeout(20):
        while engine.status().state != state:
            await asyncio.sleep(0.005)


async def test_requests_wait_for_a_child_that_is_started_again(tmp_path: Path) -> None:
    async with started(tmp_path, SLOW) as (engine, child, process):
        os.kill(process, signal.SIGKILL)
        assert engine.status().state == "ready"  # not noticed yet: this one finds nobody there
        early = asyncio.create_task(text_of(engine, ask("hi")))
        await until(engine, "loading")
        assert await text_of(engine, ask("hi")) == "Hello you"
        assert await early == "Hello you"
        assert child.restarts_total == 1


async def test_a_request_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with started(tmp_path, Patience(pause_s=30, return_s=0.2)) as (engine, _, process):
        os.kill(process, signal.SIGKILL)
        await until(engine, "loading")
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable) as caught:
                await events_of(engine, ask("hi"))
        assert caught.value.retry_after_s is not None


async def test_closing_ends_the_waiting(tmp_path: Path) -> None:
    async with started(tmp_path, Patience(pause_s=30)) as (engine, _, process):
        os.kill(process, signal.SIGKILL)
        await until(engine, "loading")
        waiting = asyncio.create_task(events_of(engine, ask("hi")))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await engine.close()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await waiting


async def test_a_request_that_kills_the_child_costs_two_lives_at_most(tmp_path: Path) -> None:
    async with started(tmp_path, Patience(pause_s=0.6)) as (engine, child, _):
        with pytest.raises(Unavailable):
            await events_of(engine, ask(POISON))
        async with asyncio.timeout(20):
            while child.restarts_total < 2:  # its second end may not have been noticed yet
                await asyncio.sleep(0.005)
        await until(engine, "ready")
        assert await text_of(engine, ask("hi")) == "Hello you"
        assert child.restarts_total == 2


async def test_a_child_that_hangs_is_called_stalled_and_started_again(tmp_path: Path) -> None:
    patience = Patience(pause_s=0.05, stop_s=0.5, probe_s=0.05, stall_s=1.0)
    async with started(tmp_path, patience) as (engine, child, process):
        await asyncio.sleep(1.5)
        assert child.process_id == process  # a child that answers is left alone
        os.kill(process, signal.SIGSTOP)
        waiting = asyncio.create_task(text_of(engine, ask("hi")))
        await until(engine, "stalled")
        assert await waiting == "Hello you"
        assert child.restarts_total == 1
        assert child.process_id != process
