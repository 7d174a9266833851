"""Whether the model's thread still gets on with its work."""

from __future__ import annotations

import time

STALLED = "the engine makes no progress with the requests that it has; try again soon"


class Pulse:
    """Written by the model's thread, read from any. On a clock that never jumps."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def beat(self, *, busy: bool = True) -> None:
        """A piece of work begins; or, not `busy`, there is none."""
        self._since_s = time.monotonic() if busy else None

    @property
    def still_s(self) -> float:
        """For how long the same piece of work has gone on; 0 where there is none."""
        since_s = self._since_s
        return 0.0 if since_s is None else time.monotonic() - since_s
