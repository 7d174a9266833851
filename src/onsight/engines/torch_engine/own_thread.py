"""The one thread that owns a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class OwnThread:
    """Runs what it is given, one after the other. Unlike an executor's thread, it keeps no process from ending."""

    def __init__(self, name: str) -> None:
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)` on the thread; what it raises is raised, a panic in Rust as RuntimeError: asyncio's own
        signals are no `Exception` either. Not to be called after `close`."""
        made: Future[T] = Future()

        def order() -> None:
            if made.set_running_or_notify_cancel():
                try:
                    made.set_result(work(*given))
                except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                    made.set_exception(error)
                except BaseException as error:  # noqa: BLE001 - the same
                    made.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

        self._orders.put(order)
        return await asyncio.wrap_future(made)

    async def close(self, timeout_s: float) -> bool:
        """End the thread after what it is at, which may take `timeout_s` seconds more; whether it has ended."""
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
