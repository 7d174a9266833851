"""What an engine is: messages in, events out; or a query or a page in, vectors out. It never sees HTTP, URLs or files
of a client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from onsight.core.embedding import Embedding, VectorSpace
from onsight.core.generation import Event, GenerateRequest
from onsight.core.messages import Image, Text

EngineState = Literal["loading", "ready", "stalled", "draining", "dead"]
"""`stalled`: there is work, and none of it has got on for long; it may yet go on."""

Progress = Callable[[int, int], None]
"""Called with (done, total) while weights load."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a model takes in memory, in bytes, beside the working memory of a forward.

    `token_bytes`: keys and values of one token of prompt or answer. `picture_tokens`: how many tokens a picture of
    `PICTURE_PX` takes in the prompt; `picture_bytes`: what these keep, with all that is kept of the picture aside.
    """

    weights_bytes: int
    token_bytes: int
    picture_tokens: int
    picture_bytes: int


PICTURE_PX = (1920, 1080)
"""Width and height of the picture that `MemoryUse` speaks of: a common screen."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What `/health`, `/ready` and `/metrics` may say about an engine; reading it never waits for the engine.

    `kv_used_tokens` of `kv_total_tokens` places in the key-value cache hold live sequences. The `*_total` counters
    only grow; `step_requests_total` counts a request in each of its steps, and stays 0 where another program makes
    them. `memory` is None for an engine that holds no model itself, and until it is loaded.
    """

    state: EngineState
    device: str
    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    image_cache_bytes: int = 0
    image_cache_hits_total: int = 0
    image_cache_misses_total: int = 0
    prefix_cached_tokens_total: int = 0
    prompt_tokens_total: int = 0
    steps_total: int = 0
    step_requests_total: int = 0
    detail: str = ""
    memory: MemoryUse | None = None


class Engine(Protocol):
    """Anything that can be started, asked how it is, and closed."""

    async def start(self) -> None:
        """Load what is needed. Raises StartError with one clear sentence when that cannot be done."""
        ...

    async def close(self) -> None:
        """Stop at once; requests still running get `Unavailable`. May be called twice."""
        ...

    def status(self) -> EngineStatus: ...


class ChatEngine(Engine, Protocol):
    """An engine that answers in text."""

    @property
    def context_tokens(self) -> int:
        """Most tokens that prompt and answer may have together."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Answer one request. Closing the generator cancels the request and frees its slot.

        Raises RequestError before the first event when the request cannot be answered, EngineFailed when the
        engine breaks.
        """
        ...


class EmbedEngine(Engine, Protocol):
    """An engine that turns queries and pages into vectors."""

    @property
    def context_tokens(self) -> int:
        """Most tokens that a query or a page may have."""
        ...

    @property
    def space(self) -> VectorSpace:
        """What its vectors are. Raises Unavailable until the model is loaded."""
        ...

    def n_patches(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of vectors that a page of `width` x `height` px has, without any option.

        Raises InvalidRequest for a size that no page can have, Unavailable until the model is loaded.
        """
        ...

    async def embed(self, one: Text | Image, caller: str = "") -> Embedding:
        """The vectors of a query (`Text`) or a page (`Image`). Many may be asked for at once; cancelling one frees its
        place. `caller`: who asks; those who wait take turns by it.

        Raises RequestError when it cannot be embedded, EngineFailed when the engine breaks.
        """
        ...

    async def score(self, queries: Sequence[Embedding], pages: Sequence[Embedding]) -> list[list[float]]:
        """[queries][pages]: late interaction (MaxSim), of vectors from wherever.

        Raises InvalidRequest for vectors that cannot be compared.
        """
        ...
