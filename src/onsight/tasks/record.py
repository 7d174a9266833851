"""What one request cost, told once to everyone who keeps books (the log, the metrics)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from onsight.core.errors import RequestError
from onsight.core.generation import Finished

UNFORESEEN = "internal_error"
"""The reason of a request that neither ended, nor was left, nor was refused by an error of ours."""


@dataclass(slots=True)
class Record:
    """The life of one request; times are monotonic seconds. `reason` is stop, length, cancelled, or an error's code.

    `caller`: who asked, as the tasks' calls name them. `turn_s`: when it was worked on; media are opened from then on.
    """

    request_id: str
    task: str
    model: str
    caller: str = ""
    images: int = 0
    videos: int = 0
    began_s: float = field(default_factory=time.monotonic)
    turn_s: float | None = None
    opened_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int = 0
    completion_tokens: int = 0
    reason: str = UNFORESEEN

    def turn_came(self) -> None:
        self.turn_s = time.monotonic()

    def media_opened(self) -> None:
        self.opened_s = time.monotonic()

    def token(self) -> None:
        """The first call marks the first token; later ones cost a comparison."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic()

    def finished(self, event: Finished, *, own_prompt: bool = False) -> None:
        """Add one choice's usage; the choices of a request share their prompt, unless each has one of its own."""
        usage = event.usage
        if not own_prompt:
            self.prompt_tokens = self.image_tokens = self.video_tokens = 0
            self.cached_tokens = max(0, self.cached_tokens - usage.cached_tokens)
        self.prompt_tokens += usage.prompt_tokens
        self.image_tokens += usage.image_tokens
        self.video_tokens += usage.video_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += event.usage.completion_tokens
        self.reason = event.reason

    def embedded(self, tokens: int, image_tokens: int) -> None:
        """Add one embedded input."""
        self.prompt_tokens += tokens
        self.image_tokens += image_tokens

    @property
    def media_s(self) -> float:
        """Seconds that opening its media took; 0 where there were none."""
        if self.turn_s is None or self.opened_s is None or not (self.images or self.videos):
            return 0.0
        return self.opened_s - self.turn_s

    @property
    def seconds(self) -> float | None:
        """How long it took; None until it has ended."""
        return None if self.ended_s is None else self.ended_s - self.began_s

    @property
    def first_token_ms(self) -> float | None:
        return None if self.first_token_s is None else (self.first_token_s - self.began_s) * 1000

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one; None when fewer than two came."""
        if self.first_token_s is None or self.ended_s is None or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / max(self.ended_s - self.first_token_s, 1e-6)


Bookkeeper = Callable[[Record], None]
"""Called once with each ended Record, on the event loop; must not block."""


@contextmanager
def kept(record: Record, bookkeepers: Sequence[Bookkeeper]) -> Iterator[None]:
    """Note how the request ends that the block works on, and tell the bookkeepers."""
    try:
        yield
    except RequestError as error:
        record.reason = error.code
        raise
    except (asyncio.CancelledError, GeneratorExit):
        if record.reason == UNFORESEEN:
            record.reason = "cancelled"
        raise
    finally:
        record.ended_s = time.monotonic()
        for bookkeeper in bookkeepers:
            bookkeeper(record)
