"""The threads that prepare requests while the model works on others."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from onsight.core.errors import RequestError
from onsight.core.threads import started_pool
from onsight.engines.torch_engine.failures import failure_of

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PreparePool:
    """An engine's own threads for everything that needs no model."""

    def __init__(self) -> None:
        self._threads = started_pool(max(2, (os.cpu_count() or 2) // 2), "onsight-prepare")

    async def run(self, work: Callable[[_In], _Out], subject: _In) -> _Out:
        """`work(subject)` on one of the threads. Raises what it raises of ours, EngineFailed for anything else."""
        (made,) = await self.run_all(work, [subject])
        if isinstance(made, RequestError):
            raise made
        return made

    async def run_all(self, work: Callable[[_In], _Out], subjects: Sequence[_In]) -> list[_Out | RequestError]:
        """For each of the subjects, one after the other on one of the threads, what `run` would give or raise."""
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: [_attempt(work, subject) for subject in subjects]
            )
        except RuntimeError as error:  # the pool is closed
            return [failure_of(error) for _ in subjects]

    def close(self) -> None:
        """Take nothing more; what runs goes on to its end."""
        self._threads.shutdown(wait=False)


class SmallWork(Generic[_In, _Out]):
    """Work on small subjects: all that wait go to a pool's thread together, since handing one over takes longer than
    the work on it."""

    def __init__(self, pool: PreparePool, work: Callable[[_In], _Out]) -> None:
        self._pool, self._work = pool, work
        self._waiting: list[tuple[_In, asyncio.Future[_Out]]] = []
        self._going: asyncio.Task[None] | None = None

    async def run(self, subject: _In) -> _Out:
        """As `PreparePool.run`."""
        future: asyncio.Future[_Out] = asyncio.get_running_loop().create_future()
        self._waiting.append((subject, future))
        if self._going is None or self._going.done():
            self._going = asyncio.create_task(self._go())
        return await future

    async def _go(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, []
            every = await self._pool.run_all(self._work, [subject for subject, _ in asked])
            for (_, future), made in zip(asked, every, strict=True):
                if future.done():  # its caller has left
                    continue
                if isinstance(made, RequestError):
                    future.set_exception(made)
                else:
                    future.set_result(made)


def _attempt(work: Callable[[_In], _Out], subject: _In) -> _Out | RequestError:
    try:
        return work(subject)
    except RequestError as error:
        return error
    except BaseException as error:  # the engine's boundary: whatever breaks concerns this request only
        log.exception("a request could not be prepared")
        return failure_of(error)
