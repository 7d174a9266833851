"""The engine as the server sees it: asyncio outside, one thread that owns the model inside, a pool that prepares."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import torch

from onsight.core.engine import EngineState, EngineStatus, MemoryUse, Progress
from onsight.core.errors import RequestError, StartError, Unavailable
from onsight.core.generation import Event, Finished, GenerateRequest
from onsight.core.turns import Turns
from onsight.engines.machine import give_back_memory
from onsight.engines.torch_engine import kv_cache, loading
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.cores import Cores
from onsight.engines.torch_engine.eye import Eye
from onsight.engines.torch_engine.families import LoadFamily, load_family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.grammar import GrammarCompiler
from onsight.engines.torch_engine.intake import Intake
from onsight.engines.torch_engine.memory import memory_use, pick_scheme, require_room
from onsight.engines.torch_engine.prefix import SlotBook
from onsight.engines.torch_engine.prepare_pool import PreparePool
from onsight.engines.torch_engine.pulse import STALLED
from onsight.engines.torch_engine.runner import Runner
from onsight.engines.torch_engine.sampling import Sampler
from onsight.engines.torch_engine.scheduler import Scheduler
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.step_loop import Outbox, StepLoop
from onsight.engines.torch_engine.vocabulary import Vocabulary, end_token_ids
from onsight.models.card import ModelCard

log = logging.getLogger(__name__)

_PREPARED = 2
"""Pixels are prepared for so many times the running requests: enough to keep the model busy, few enough for memory."""

_CLOSE_S = 30
"""How long a step may still take when the engine is closed; a thread that is stuck would keep the server for ever."""
_QUEUED = 4
"""Prompts are read and wait that would fill the key-value cache so many times, if nobody says otherwise."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    """What a started engine consists of. `prompt_room`: for the tokens of the prompts that run and wait."""

    intake: Intake
    prompt_room: Turns
    loop: StepLoop
    device: torch.device
    size: kv_cache.KeyValueSize
    memory: MemoryUse


class TorchEngine:
    """See `ChatEngine`. One model, continuous batching over `max_num_seqs` slots."""

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        settings: TorchSettings | None = None,
        progress: Progress | None = None,
        load_family: LoadFamily = load_family,
    ) -> None:
        """`progress` is called on the model's thread with (tensors read, in all); `load_family` may bring others."""
        self._folder = folder
        self._card = card
        self._settings = settings or TorchSettings()
        self._progress = progress
        self._load_family = load_family
        self._state: EngineState = "loading"
        self._loaded: _Loaded | None = None
        self._thread: threading.Thread | None = None
        self._pool = PreparePool()
        self._live: set[Sequence] = set()
        self._turns = Turns(_PREPARED * self._settings.max_num_seqs)

    @property
    def context_tokens(self) -> int:
        """See `ChatEngine.context_tokens`; 0 before `start`."""
        return self._loaded.size.tokens if self._loaded else 0

    async def start(self) -> None:
        """Load the model on the thread that will own it. Raises StartError with one clear sentence."""
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._own, args=(loop, started), name="onsight-model", daemon=True)
        self._thread.start()
        await started
        if self._state == "loading":
            self._state = "ready"

    async def close(self) -> None:
        """See `Engine.close`."""
        self._state = "dead"
        self._tell_all(Unavailable("the engine was closed; try again soon"))
        if self._loaded is not None:
            self._loaded.loop.stop()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _CLOSE_S)
            if self._thread.is_alive():
                log.error("the model's thread is still at its last step after %d s and is left behind", _CLOSE_S)
        self._pool.close()

    def status(self) -> EngineStatus:
        """What the last step left behind; never waits."""
        if self._loaded is None:
            return EngineStatus(self._state, "none")
        size = self._loaded.size
        return dataclasses.replace(
            self._loaded.loop.status,
            state="stalled" if self._stalled else self._state,
            device=str(self._loaded.device),
            waiting=self._loaded.loop.status.waiting + self._turns.waiting + self._loaded.prompt_room.waiting,
            kv_total_tokens=size.slots * size.tokens,
            memory=self._loaded.memory,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `ChatEngine.generate`."""
        loaded = self._require_ready()
        self._require_progress()
        sequence = await self._prepare(loaded.intake.read, request)
        # Before any pixel is touched. It waits and is not refused: its place was given to it, and its media are open.
        room = loaded.prompt_room.turn(request.caller, sequence.prompt_tokens)
        async with room, self._turns.turn(request.caller):
            await self._prepare(loaded.intake.look, sequence.prompt)
            self._require_ready()
            async with aclosing(self._run(loaded.loop, sequence)) as events:
                async for event in events:
                    yield event

    async def _run(self, loop: StepLoop, sequence: Sequence) -> AsyncGenerator[Event, None]:
        """The events of a sequence that is ready to run."""
        self._live.add(sequence)
        loop.submit(sequence)
        event: Event | RequestError | None = None
        reader = sequence.reader
        try:
            while not isinstance(event, Finished):
                event = await sequence.mailbox.get()
                if isinstance(event, RequestError):
                    raise event
                for told in [event] if reader is None else reader.read(event):
                    yield told
        finally:
            self._live.discard(sequence)
            if not isinstance(event, Finished | RequestError):
                sequence.cancelled = True
                loop.wake()

    async def _prepare(self, work: Callable[[_In], _Out], subject: _In) -> _Out:
        """Do the work in the pool."""
        self._require_ready()
        return await self._pool.run(work, subject)

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
        """Whether there is work, and no step of it has ended for long."""
        loaded = self._loaded
        return self._state == "ready" and loaded is not None and loaded.loop.pulse.still_s > self._settings.stall_s

    def _tell_all(self, error: RequestError) -> None:
        for sequence in self._live:
            sequence.mailbox.put_nowait(error)

    def _deliver(self, outbox: Outbox) -> None:
        """On the event loop: hand a step's results to those who wait for them."""
        for sequence, event in outbox:
            sequence.mailbox.put_nowait(event)

    def _die(self) -> None:
        """On the event loop: the model's thread is gone."""
        self._state = "dead"
        self._tell_all(Unavailable("the engine has died; the server's log says why"))

    def _own(self, events: asyncio.AbstractEventLoop, started: asyncio.Future[None]) -> None:
        """The model's thread: load, then step until closed."""
        try:
            loaded = self._loaded = self._load()
            # `close` first sets the state and then stops the loop that it finds: one of the two sees the other.
            if self._state == "dead":
                raise StartError(f"{self._folder} was closed while it was loading")
        except BaseException as error:  # a thread's boundary: whoever waits for the start must hear of it
            if not isinstance(error, StartError):
                log.exception("%s cannot be loaded", self._folder)
                error = StartError(f"{self._folder} cannot be loaded: {' '.join(str(error).split())}")
            events.call_soon_threadsafe(started.set_exception, error)
            return
        events.call_soon_threadsafe(started.set_result, None)
        try:
            loaded.loop.run(lambda outbox: events.call_soon_threadsafe(self._deliver, outbox))
        except BaseException:  # the engine's boundary: no step can run any more, and callers must not wait for ever
            log.exception("the model's thread has died")
            events.call_soon_threadsafe(self._die)

    def _load(self) -> _Loaded:
        """On the model's thread: everything from files to a first forward. Raises StartError."""
        folder, settings = self._folder, self._settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        loading.check_folder(folder, self._card.replaces_code)
        device = loading.pick_device(settings.device)
        dtype = loading.pick_dtype(settings.dtype, device)
        scheme = pick_scheme(folder, settings, device, dtype)
        require_room(folder, device, dtype, scheme)
        vocabulary = Vocabulary(folder)
        checkpoint = loading.Checkpoint(folder, device, dtype, self._progress, scheme)
        family = self._load_family(self._card.family, checkpoint, vocabulary)
        decoder = family.decoder
        size = kv_cache.fit(decoder.shape, family.context_tokens, settings, device, dtype)
        cache = kv_cache.KeyValueCache(decoder.shape, size, device, dtype)
        features = FeatureCache(settings.image_cache_bytes)
        ends = end_token_ids(folder, vocabulary) | family.end_token_ids
        grammars = GrammarCompiler(vocabulary, decoder.vocab_rows, sorted(ends))
        watcher = family.watcher
        words = None if watcher is None else watcher.words
        template = ChatTemplate(folder, family.image_text, family.chat_template, words, family.tool_syntax)
        cores = Cores(device, decoder.layer_weights)
        runner = Runner(family, cache, cores)
        with torch.inference_mode():
            runner.warm_up()
        give_back_memory()
        loop = StepLoop(
            Eye(family, features, cores),
            runner,
            Sampler(decoder.vocab_rows, family.media_token_ids, vocabulary.size, device),
            Scheduler(SlotBook(size.slots)),
            vocabulary,
            ends,
        )
        intake = Intake(family, vocabulary, template, grammars, features, size.tokens)
        memory = memory_use(family, folder, dtype, scheme)
        log.info(
            "weights of %.2f GiB as %s on %s; %d answers at once, each with its prompt of at most %d tokens",
            memory.weights_bytes / 2**30, scheme or str(dtype).removeprefix("torch."), device, size.slots, size.tokens,
        )  # fmt: skip
        prompt_room = Turns(settings.max_queue_tokens or _QUEUED * size.slots * size.tokens)
        return _Loaded(intake, prompt_room, loop, device, size, memory)
