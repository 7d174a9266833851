"""How often a key and an address may call: each has a bucket that fills at a steady rate and holds a minute's worth."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from onsight.api.auth import ALWAYS_OPEN, caller_of, routed_path
from onsight.api.errors import RateLimited
from onsight.core.addresses import neighbourhood

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


class Rate:
    """How often each may call. `by`: "key" or "address", as its setting and its errors say it."""

    def __init__(self, by: str, a_minute: int) -> None:
        self.by = by
        self._a_minute = a_minute
        self._buckets = Buckets(a_minute)

    def count(self, who: str) -> None:
        """Count one more request. Raises RateLimited for one too many."""
        wait_s = self._buckets.take(who)
        if wait_s:
            raise RateLimited(
                f"more than {self._a_minute} requests a minute from this {self.by}; try again later"
                f" (--requests-per-min-{self.by})",
                retry_after_s=math.ceil(wait_s),
            )


class RateLimit:
    """ASGI middleware: 429 with `Retry-After` for who calls too often, before anything of the body is read.

    By address each request is counted before its key is looked at, by key with the key's name. Probes are not counted.
    """

    def __init__(self, app: ASGIApp, rate: Rate) -> None:
        self._app = app
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = self._who(scope)
        if who is not None:
            self._rate.count(who)
        await self._app(scope, receive, send)

    def _who(self, scope: Scope) -> str | None:
        if scope["type"] == "lifespan" or routed_path(scope) in ALWAYS_OPEN:
            return None
        if self._rate.by == "key":
            caller = caller_of(scope)
            return None if caller is None else caller.name
        client = scope.get("client")
        return None if client is None else neighbourhood(str(client[0]))
