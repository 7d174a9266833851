"""Who knows whether the server behind an engine works: a watch over somebody else's, or the keeper of our own child."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from onsight.core.engine import EngineState

Check = Callable[[], Awaitable[None]]
"""A question to the server; raises RequestError while it has no good answer, StartError when it never will."""


class Keeper(Protocol):
    """Knows whether the server works, and where it can, sees to it."""

    @property
    def state(self) -> EngineState:
        """Of the server, as far as it is known."""
        ...

    @property
    def return_s(self) -> float:
        """How long a request may wait for a server that was ready and is not, in seconds."""
        ...

    @property
    def detail(self) -> str: ...

    async def start(self, check: Check, probe: Check) -> None:
        """Return once `check` went through: a real answer, asked for again whenever the server came back. `probe`
        costs the server nothing. Raises StartError."""
        ...

    async def close(self) -> None: ...
