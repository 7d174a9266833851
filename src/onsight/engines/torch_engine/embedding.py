"""The embedding engine: inputs prepared in a pool, batched by length, run on the model's own thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onsight.core.embedding import Embedding, VectorSpace
from onsight.core.engine import PICTURE_PX, EngineState, EngineStatus, MemoryUse, Progress
from onsight.core.errors import EngineFailed, StartError, Unavailable
from onsight.core.messages import Image, Text
from onsight.core.turns import Turns
from onsight.engines.torch_engine import loading
from onsight.engines.torch_engine.embed_queue import Asked, EmbedQueue
from onsight.engines.torch_engine.failures import failure_of
from onsight.engines.torch_engine.families import LoadEmbedder, load_embedder
from onsight.engines.torch_engine.length_groups import BATCH_TOKENS
from onsight.engines.torch_engine.own_thread import OwnThread
from onsight.engines.torch_engine.prepare_pool import PreparePool, SmallWork
from onsight.engines.torch_engine.prompt import Prompt
from onsight.engines.torch_engine.pulse import STALLED, Pulse
from onsight.engines.torch_engine.scoring import max_sim
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.models.card import ModelCard

if TYPE_CHECKING:
    from onsight.engines.torch_engine.families.colqwen import ColQwen

log = logging.getLogger(__name__)

_CPU_PAGE_TOKENS = 2048
"""On a CPU a page is embedded hardly sooner in a batch, and queries wait the longer."""
_CLOSE_S = 30
"""How long a batch may still take when the engine is closed; a thread that is stuck would keep the server for ever."""
_PREPARED_PAGES = 32
"""Usual pages whose pixels are prepared at once, fewer of larger ones: enough to fill a batch during the last one."""
_PAGE_BYTES = 15_000_000
"""A usual page's pixels, prepared; 768 tokens take 14.5 MB."""
_PREPARED_CHARACTERS = 1 << 20
"""Of queries that are prepared at once: some 40 bytes each, as token ids. A thousand usual ones."""


_SHORT_CHARS = 2000
"""A longer text is tokenised by itself; shorter ones that wait go through together."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a started engine consists of."""

    model: ColQwen
    queue: EmbedQueue
    memory: MemoryUse


class TorchEmbedEngine:
    """See `EmbedEngine`. The queue lives on the event loop; the model on one thread that runs a batch at a time."""

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        settings: TorchSettings | None = None,
        progress: Progress | None = None,
        load: LoadEmbedder = load_embedder,
    ) -> None:
        """`progress` is called on the model's thread with (tensors read, in all); `load` may bring other models."""
        self._folder = folder
        self._card = card
        self._settings = settings or TorchSettings()
        self._progress = progress
        self._load_embedder = load
        # Asked for here: a chat engine that runs in the same process changes it for threads that begin later.
        self._threads = self._settings.threads or torch.get_num_threads()
        self._state: EngineState = "loading"
        self._loaded: _Loaded | None = None
        self._model_thread = OwnThread("onsight-embed")
        # Pages have threads of their own: a query or a score must not wait for those that are resized before it.
        self._pages, self._others = PreparePool(), PreparePool()
        self._queries: SmallWork[Text | Image, Prompt] = SmallWork(self._others, self._prepare)
        self._page_turns = Turns(_PREPARED_PAGES)
        self._query_room = Turns(_PREPARED_CHARACTERS)
        self._arrived = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._live: set[Asked] = set()
        self._pulse = Pulse()
        self._running = self._preparing = self._batches = self._batched = self._tokens = 0

    @property
    def context_tokens(self) -> int:
        """See `EmbedEngine.context_tokens`; 0 before `start`."""
        return self._loaded.model.context_tokens if self._loaded else 0

    @property
    def space(self) -> VectorSpace:
        """See `EmbedEngine.space`."""
        model = self._require_ready().model
        return VectorSpace(model.dims, str(model.dtype).removeprefix("torch."), model.image_token_id, model.merge)

    def n_patches(self, width: int, height: int) -> tuple[int, int]:
        """See `EmbedEngine.n_patches`."""
        return self._require_ready().model.n_patches(width, height)

    async def start(self) -> None:
        """Load the model on the thread that will own it. Raises StartError with one clear sentence."""
        try:
            self._loaded = await self._model_thread.run(self._load)
        except StartError:
            raise
        except Exception as error:  # whatever breaks in foreign files must be said in one sentence
            log.exception("%s cannot be loaded", self._folder)
            raise StartError(f"{self._folder} cannot be loaded: {' '.join(str(error).split())}") from None
        if self._state == "dead":
            raise StartError(f"{self._folder} was closed while it was loading")
        self._state = "ready"
        self._working = asyncio.create_task(self._work(self._loaded))
        self._working.add_done_callback(self._ended)

    async def close(self) -> None:
        """See `Engine.close`; returns when the batch in progress is done, or stuck."""
        self._state = "dead"
        self._tell_all("the engine was closed; try again soon")
        if self._working is not None:
            self._working.cancel()
        self._pages.close()
        self._others.close()
        if not await self._model_thread.close(_CLOSE_S):
            log.error("the model's thread is still at its last batch after %d s and is left behind", _CLOSE_S)

    def status(self) -> EngineStatus:
        """What is true at this moment; never waits."""
        if self._loaded is None:
            return EngineStatus(self._state, "none")
        return EngineStatus(
            state="stalled" if self._stalled else self._state,
            device=str(self._loaded.model.device),
            running=self._running,
            waiting=self._preparing + len(self._loaded.queue),
            prompt_tokens_total=self._tokens,
            steps_total=self._batches,
            step_requests_total=self._batched,
            memory=self._loaded.memory,
        )

    async def embed(self, one: Text | Image, caller: str = "") -> Embedding:
        """See `EmbedEngine.embed`."""
        self._require_progress()
        async with AsyncExitStack() as places:
            self._preparing += 1
            try:
                if isinstance(one, Image):
                    pages = -(-self._require_ready().model.page_bytes(one) // _PAGE_BYTES)
                    await places.enter_async_context(self._page_turns.turn(caller, pages))
                else:
                    await places.enter_async_context(self._query_room.turn(caller, len(one.text)))
                self._require_ready()
                if isinstance(one, Image):
                    prompt = await self._pages.run(self._prepare, one)
                elif len(one.text) > _SHORT_CHARS:
                    prompt = await self._others.run(self._prepare, one)
                else:
                    prompt = await self._queries.run(one)
            finally:
                self._preparing -= 1
            queue = self._require_ready().queue
            asked = Asked(prompt, asyncio.get_running_loop().create_future(), caller)
            self._live.add(asked)
            queue.add(asked)
            self._arrived.set()
            try:
                return await asked.made
            finally:
                self._live.discard(asked)
                queue.discard(asked)

    async def score(self, queries: Sequence[Embedding], pages: Sequence[Embedding]) -> list[list[float]]:
        """See `EmbedEngine.score`; in a pool, beside the model."""
        self._require_ready()
        return await self._others.run(lambda both: max_sim(*both), (queries, pages))

    def _prepare(self, one: Text | Image) -> Prompt:
        """In a pool: everything that needs no model."""
        model = self._require_ready().model
        prompt = model.read(one)
        model.look(prompt)
        return prompt

    async def _work(self, loaded: _Loaded) -> None:
        """One batch after the other, for as long as the engine lives."""
        while True:
            await self._arrived.wait()
            batch = loaded.queue.take()
            if not batch:
                self._arrived.clear()
                continue
            self._running = len(batch)
            self._pulse.beat()
            made = await self._model_thread.run(self._forward, batch)
            self._running = 0
            self._pulse.beat(busy=False)
            self._batches += 1
            self._batched += len(batch)
            for asked, embedding in zip(batch, made, strict=True):
                if asked.made.done():  # its caller has left
                    continue
                if isinstance(embedding, EngineFailed):
                    asked.made.set_exception(embedding)
                else:
                    self._tokens += asked.tokens
                    asked.made.set_result(embedding)

    def _forward(self, batch: Sequence[Asked]) -> list[Embedding | EngineFailed]:
        """On the model's thread: each one's vectors, or what its caller is told where they break."""
        assert self._loaded is not None  # nothing is asked before
        torch.set_num_threads(self._threads)
        try:
            return list(self._loaded.model.embed([asked.prompt for asked in batch]))
        except BaseException as error:  # the engine's boundary: whatever breaks concerns these inputs only
            if len(batch) == 1:
                log.exception("an input could not be embedded; its request fails with it")
                return [failure_of(error)]
            # One input must not take its neighbours with it: find the culprit by running each alone.
            log.warning("embedding %d inputs together failed; embedding each alone", len(batch), exc_info=True)
        return [made for asked in batch for made in self._forward([asked])]

    def _require_ready(self) -> _Loaded:
        if self._state != "ready" or self._loaded is None:
            raise Unavailable(f"the engine is {self._state}; try again soon")
        return self._loaded

    def _require_progress(self) -> None:
        """For new requests; those that were taken up wait."""
        if self._stalled:
            raise Unavailable(STALLED, retry_after_s=5)

    @property
    def _stalled(self) -> bool:
        return self._state == "ready" and self._pulse.still_s > self._settings.stall_s

    def _tell_all(self, why: str) -> None:
        for asked in self._live:
            if not asked.made.done():
                asked.made.set_exception(Unavailable(why))

    def _ended(self, working: asyncio.Task[None]) -> None:
        """No batch runs any more, and callers must not wait for ever."""
        if not working.cancelled():
            log.error("the embedding engine has died", exc_info=working.exception())
            self._state = "dead"
            self._tell_all("the engine has died; the server's log says why")

    def _load(self) -> _Loaded:
        """On the model's thread: from files to a first forward. Raises StartError."""
        device = loading.pick_device(self._settings.device)
        dtype = loading.pick_dtype(self._settings.dtype, device)
        model = self._load_embedder(self._card.family, loading.Checkpoint(self._folder, device, dtype, self._progress))
        # Forwards of so many tokens happen anyway, of short inputs together: a longer one has to be asked for.
        model.context_tokens = min(model.context_tokens, self._settings.max_model_len or BATCH_TOKENS)
        model.embed([model.read(Text(""))])  # the first forward pays for lazy set-up
        columns, rows = model.n_patches(*PICTURE_PX)
        memory = MemoryUse(model.weight_bytes, token_bytes=0, picture_tokens=columns * rows, picture_bytes=0)
        queue = EmbedQueue(_CPU_PAGE_TOKENS if device.type == "cpu" else BATCH_TOKENS)
        return _Loaded(model, queue, memory)
