"""Pools whose threads are all there at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import wait

from onsight.core.threads import start_loops_threads, started_pool


def test_all_threads_run_before_there_is_work() -> None:
    begun: list[str] = []
    pool = started_pool(5, "some", lambda: begun.append(threading.current_thread().name))
    try:
        wait([pool.submit(int)], 10)
        assert sorted(begun) == [f"some_{number}" for number in range(5)]
        assert [pool.submit(int, "7").result(10) for _ in range(9)] == [7] * 9
    finally:
        pool.shutdown()


async def test_the_event_loops_work_goes_to_threads_that_run_already() -> None:
    start_loops_threads()
    named = await asyncio.to_thread(lambda: [one.name for one in threading.enumerate()])
    assert len([name for name in named if name.startswith("onsight-work")]) >= 5
