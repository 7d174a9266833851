"""Looks after a server that somebody else runs: whether it answers, so that /ready tells the truth."""

from __future__ import annotations

import asyncio
import logging
import time

from onsight.core.engine import EngineState
from onsight.core.errors import RequestError, StartError
from onsight.engines.upstream_engine.keeper import Check

log = logging.getLogger(__name__)


class Watch:
    """See `Keeper`. Asks every `every_s` seconds; the server may take `start_s` seconds until its first answer."""

    def __init__(self, url: str, *, every_s: float = 2.0, start_s: float = 60.0) -> None:
        self._url = url
        self._every_s = every_s
        self._start_s = start_s
        self._watching: asyncio.Task[None] | None = None
        self.state: EngineState = "loading"

    @property
    def detail(self) -> str:
        return f"the model runs at {self._url}"

    @property
    def return_s(self) -> float:
        """None: nobody here knows whether somebody else's server comes back."""
        return 0.0

    async def start(self, check: Check, probe: Check) -> None:
        """See `Keeper.start`."""
        deadline_s = time.monotonic() + self._start_s
        while True:
            try:
                await check()
                break
            except RequestError as error:
                if time.monotonic() >= deadline_s:
                    raise StartError(f"{self._url} cannot be used as the model's server: {error}") from None
            await asyncio.sleep(self._every_s)
        self.state = "ready"
        self._watching = asyncio.create_task(self._watch(check, probe))

    async def _watch(self, check: Check, probe: Check) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await (probe() if self.state == "ready" else check())
            except (RequestError, StartError) as error:
                if self.state == "ready":
                    log.warning("%s no longer answers: %s", self._url, error)
                self.state = "loading"
            else:
                if self.state != "ready":
                    log.info("%s answers again", self._url)
                self.state = "ready"

    async def close(self) -> None:
        """Stop asking; the server itself is not ours."""
        self.state = "dead"
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
