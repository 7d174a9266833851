"""How often a key and an address may call: each has a bucket that fills at a steady rate and holds a minute's worth."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.auth import ALWAYS_OPEN, caller_of
from onsight.api.errors import RateLimited

_MOST_BUCKETS = 10_000
"""Callers that are remembered; the one that was quiet longest is forgotten first, and then has a full bucket."""


class Buckets:
    """One bucket a caller; `clock` counts seconds and never goes back."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take one from the caller's bucket; 0 when there was one, else the seconds until there will be."""
        now_s = self._clock()
        level, at_s = self._levels.pop(caller, (float(self._a_minute), now_s))
        level = min(self._a_minute, level + (now_s - at_s) * self._a_minute / 60)
        taken = level >= 1
        self._levels[caller] = (level - 1 if taken else level, now_s)
        while len(self._levels) > _MOST_BUCKETS:
            self._levels.popitem(last=False)
        return 0.0 if taken else (1 - level) * 60 / self._a_minute


class RateLimit:
    """ASGI middleware: 429 with `Retry-After` for who calls too often, before anything of the body is read.

    `by`: "address" counts each client's address, before its key is looked at, so that keys cannot be guessed at speed;
    "key" counts each key by its name. Probes are not counted.
    """

    def __init__(self, app: ASGIApp, *, by: str, a_minute: int) -> None:
        self._app = app
        self._by = by
        self._a_minute = a_minute
        self._buckets = Buckets(a_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = self._who(scope)
        if who is not None:
            wait_s = self._buckets.take(who)
            if wait_s:
                raise RateLimited(
                    f"more than {self._a_minute} requests a minute from this {self._by}; try again later"
                    f" (--requests-per-min-{self._by})",
                    retry_after_s=math.ceil(wait_s),
                )
        await self._app(scope, receive, send)

    def _who(self, scope: Scope) -> str | None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN:
            return None
        if self._by == "key":
            caller = caller_of(scope)
            return None if caller is None else caller.name
        client = scope.get("client")
        return None if client is None else str(client[0])
