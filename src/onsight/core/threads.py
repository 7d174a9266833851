"""Pools of threads that are all there from the beginning."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_START_S = 10.0


def started_pool(workers: int, name: str, initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """A pool whose threads all run already.

    A thread keeps some megabytes from its first work on; started one by one, as more comes at once than ever before,
    they let a server grow for hours.
    """
    pool = ThreadPoolExecutor(workers, name, initializer)
    together = threading.Barrier(workers)
    for _ in range(workers):
        pool.submit(together.wait, _START_S)  # only while all others are busy does a pool start one more
    return pool


def start_loops_threads() -> None:
    """Start those that work for the running event loop, as many as asyncio would start one by one."""
    asyncio.get_running_loop().set_default_executor(started_pool(min(32, (os.cpu_count() or 1) + 4), "onsight-work"))
