"""Pools of threads that are all there from the beginning."""

from __future__ import annotations

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
