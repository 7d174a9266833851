"""An engine whose model runs in another program: our requests to its OpenAI API, and its stream back as events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from onsight.core.engine import EngineStatus
from onsight.core.errors import (
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    RequestError,
    StartError,
    Unavailable,
    Unsupported,
)
from onsight.core.generation import Event, Finished, GenerateRequest, Sampling, Usage
from onsight.core.geometry import View
from onsight.core.messages import Message, Text
from onsight.core.tools import ToolCall
from onsight.core.turns import Turns
from onsight.engines.upstream_engine.answer import GARBAGE, AnswerReader
from onsight.engines.upstream_engine.body import Body, write_body
from onsight.engines.upstream_engine.connection import Address, Connection, Facts, KeyRefused, Unreached
from onsight.engines.upstream_engine.keeper import Keeper

log = logging.getLogger(__name__)

_TRIES = 3
_ASK_S = 0.05
"""Between two looks whether a child is back, or goes on."""


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """`context_tokens`: for a server that does not say; `slots`: requests that are sent to it at once.

    `silence_s`: longest time without a byte from it. `retry_pause_s`: before the second try, twice that before the
    third. `reserved`: texts that it would read as special tokens; a request with one of them is refused.
    `calls_tools`: whether it can be told of tools. `model`: the one of its models that is meant; None is the first.
    `ours`: it was started by us, with `context_tokens`; of anybody else's no number but its own can be promised.
    """

    context_tokens: int | None = None
    slots: int = 8
    silence_s: float = 300.0
    retry_pause_s: float = 0.3
    reserved: frozenset[str] = frozenset()
    calls_tools: bool = True
    model: str | None = None
    ours: bool = False


class UpstreamEngine:
    """See `ChatEngine`. Always streams, cancels by closing the connection, and tries again only before the first
    token."""

    def __init__(self, address: Address, keeper: Keeper, settings: UpstreamSettings | None = None) -> None:
        self._settings = settings or UpstreamSettings()
        self._keeper = keeper
        self._connection = Connection(address, self._settings.silence_s)
        self._facts: Facts | None = None
        self._closed = False
        self._turns = Turns(self._settings.slots)
        self._live: dict[asyncio.Task[None], asyncio.Queue[Event | RequestError]] = {}
        self._prompt_tokens_total = 0
        self._cached_tokens_total = 0
        self._steps_total = 0

    @property
    def context_tokens(self) -> int:
        """See `ChatEngine.context_tokens`; 0 before `start`."""
        return (self._facts.context_tokens or 0) if self._facts else 0

    async def start(self) -> None:
        """Wait until the server has answered a real request. Raises StartError."""
        await self._keeper.start(self._check, self._probe)
        if self._closed:
            raise StartError("the engine was closed while it was starting")

    async def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True
        pumps = list(self._live)
        for mailbox in self._live.values():
            mailbox.put_nowait(Unavailable("the engine was closed; try again soon"))
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._keeper.close()
        await self._connection.close()

    def status(self) -> EngineStatus:
        """What is known without asking the server."""
        facts = self._facts
        return EngineStatus(
            state="dead" if self._closed else self._keeper.state,
            device="none" if facts is None else facts.dialect.name,
            running=min(len(self._live), self._settings.slots),
            waiting=max(0, len(self._live) - self._settings.slots),
            prompt_tokens_total=self._prompt_tokens_total,
            prefix_cached_tokens_total=self._cached_tokens_total,
            steps_total=self._steps_total,
            detail=self._keeper.detail,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `ChatEngine.generate`."""
        mailbox: asyncio.Queue[Event | RequestError] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(request, mailbox))
        self._live[pump] = mailbox
        pump.add_done_callback(lambda done: _report(done, mailbox))
        event: Event | RequestError | None = None
        try:
            while not isinstance(event, Finished):
                event = await mailbox.get()
                if isinstance(event, RequestError):
                    raise event
                yield event
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            del self._live[pump]

    async def _pump(self, request: GenerateRequest, mailbox: asyncio.Queue[Event | RequestError]) -> None:
        """Read the answer as fast as it comes, whether or not somebody takes its events yet."""
        facts = await self._require_ready()
        self._require_offered(request, facts)
        body = await asyncio.to_thread(self._write, request, facts)
        reader = AnswerReader(request.sampling.top_logprobs)
        tries, pause_s = _TRIES, self._settings.retry_pause_s
        while True:
            try:
                # A turn for each try: who waits for the server's return keeps nobody's place.
                turn = self._turns.turn(request.caller)
                async with turn, aclosing(self._connection.stream(body.content, reader)) as deltas:
                    async for delta in deltas:
                        self._steps_total += 1
                        mailbox.put_nowait(delta)
                break
            except Unreached:
                tries -= 1
                if not tries:
                    raise
                await asyncio.sleep(pause_s)
                pause_s *= 2
                if self._keeper.state != "ready":
                    # It may have died of this very request, which may cost it one life more and no other.
                    tries = 1
                    await self._require_ready()
            except ContextTooLong as error:
                raise ContextTooLong(
                    f"{error.message}, {facts.context_tokens} tokens: shorten the text, or send fewer or smaller"
                    " pictures",
                    param="messages",
                ) from None
        mailbox.put_nowait(await self._finish(request, facts, body, reader))

    async def _finish(self, request: GenerateRequest, facts: Facts, body: Body, reader: AnswerReader) -> Finished:
        usage = reader.usage
        if usage is None or reader.reason is None:
            raise EngineFailed(f"{GARBAGE} (it counted no tokens)")
        reader.require_asked(request)
        images = [image for message in request.messages for image in message.images]
        if images and facts.dialect.counts_text and not reader.counted_images:
            usage = await self._count_images(usage, body)
        self._prompt_tokens_total += usage.prompt_tokens
        self._cached_tokens_total += usage.cached_tokens
        # Its size inside the server is not known; cards whose coordinates depend on it do not point here.
        return Finished(reader.reason, usage, tuple(View(image.size, image.size) for image in images))

    async def _count_images(self, usage: Usage, body: Body) -> Usage:
        try:
            words = await self._connection.count_words(body.fields)
        except RequestError as error:  # the answer is whole, and worth more than this number
            log.warning("the pictures' tokens could not be counted: %s", error)
            return usage
        return replace(usage, image_tokens=usage.prompt_tokens - words)

    async def _require_ready(self) -> Facts:
        """What the server said of itself; one that was ready before is waited for a while. Raises Unavailable."""
        until_s = time.monotonic() + self._keeper.return_s
        while self._facts and self.status().state not in ("ready", "dead") and time.monotonic() < until_s:
            await asyncio.sleep(_ASK_S)
        state = self.status().state
        if state != "ready" or self._facts is None:
            raise Unavailable(f"the engine is {state}; try again soon", retry_after_s=2)
        return self._facts

    def _require_offered(self, request: GenerateRequest, facts: Facts) -> None:
        """Raises Unsupported for what this very model cannot do."""
        messages = request.messages
        if facts.sees is False and any(message.images for message in messages):
            raise Unsupported("this model reads text only; leave the pictures out", param="messages")
        used = any(message.call_id or any(isinstance(part, ToolCall) for part in message.parts) for message in messages)
        if not self._settings.calls_tools and (used or request.tools is not None):
            raise Unsupported(
                "this model's chat template knows no tools; leave them out",
                param="messages" if request.tools is None else "tools",
            )

    def _write(self, request: GenerateRequest, facts: Facts) -> Body:
        """In a thread: the request's body. Raises InvalidRequest, also for texts that would not be plain words."""
        return write_body(request, facts.dialect, facts.model, self._settings.reserved)

    async def _probe(self) -> None:
        """Return once the server answers or goes on with an answer: one that writes many may let other questions wait.
        Raises RequestError, StartError."""
        before = self._steps_total
        asking = asyncio.create_task(self._connection.facts(self._settings.model, self._settings.context_tokens))
        try:
            while not asking.done() and self._steps_total == before:
                await asyncio.wait({asking}, timeout=_ASK_S)
            if asking.done():
                asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _check(self) -> None:
        """One real answer, after which the server counts as ready. Raises RequestError, StartError."""
        try:
            facts = await self._connection.facts(self._settings.model, self._settings.context_tokens)
        except KeyRefused as error:
            raise StartError(error.message) from None
        if facts.context_tokens is None:
            raise StartError("the model's server does not say how many tokens it holds: set --max-model-len")
        asked = self._settings.context_tokens
        if not self._settings.ours and asked not in (None, facts.context_tokens):
            raise StartError(
                f"max_model_len is {asked}, but the model's server holds {facts.context_tokens} tokens, and prompts are"
                " counted there alone: leave it out, and set what the server itself holds"
            )
        request = GenerateRequest((Message("user", (Text("Hello"),)),), Sampling(max_tokens=1, temperature=0.0))
        reader = AnswerReader()
        try:
            body = write_body(request, facts.dialect, facts.model)
            async with aclosing(self._connection.stream(body.content, reader)) as deltas:
                async for _ in deltas:
                    pass
        except (InvalidRequest, EngineFailed) as error:
            raise StartError(f"the model's server cannot answer a plain request: {error}") from error
        if reader.usage is None:
            raise StartError("the model's server counts no tokens (stream_options.include_usage), so it cannot be used")
        self._facts = facts


def _report(done: asyncio.Task[None], mailbox: asyncio.Queue[Event | RequestError]) -> None:
    """Tell the one who waits for events why there will be no more."""
    if done.cancelled():
        return
    error = done.exception()
    if isinstance(error, RequestError):
        if error.__cause__ is not None:
            log.warning("%s", error.__cause__)
        mailbox.put_nowait(error)
    elif error is not None:
        log.error("an answer could not be read", exc_info=error)
        mailbox.put_nowait(EngineFailed("the engine failed on this request; the server's log says why"))
