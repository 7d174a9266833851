"""The threads that prepare requests while the model works on others."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onsight.core.errors import RequestError
from onsight.engines.torch_engine.failures import failure_of

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PreparePool:
    """An engine's own threads for everything that needs no model."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(
            max_workers=max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="onsight-prepare"
        )

    async def run(self, work: Callable[[_In], _Out], subject: _In) -> _Out:
        """`work(subject)` on one of the threads. Raises what it raises of ours, EngineFailed for anything else."""

        def guarded() -> _Out:
            try:
                return work(subject)
            except RequestError:
                raise
            except BaseException as error:  # the engine's boundary: whatever breaks concerns this request only
                log.exception("a request could not be prepared")
                raise failure_of(error) from None

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    def close(self) -> None:
        """Take nothing more; what runs goes on to its end."""
        self._threads.shutdown(wait=False)
