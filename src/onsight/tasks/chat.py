"""Chat: the verb that every other text-producing task rests on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.generation import (
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    Sampling,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from onsight.core.geometry import View
from onsight.core.messages import Draft, Image, ImageRef, Message, Text, Video, VideoRef
from onsight.core.tools import ToolCall, ToolUse
from onsight.media.door import HoldPixels, MediaDoor
from onsight.models.card import ModelCard, PixelBudget
from onsight.tasks.admission import Admission
from onsight.tasks.pages import in_turn, page_requests
from onsight.tasks.record import Bookkeeper, Record, kept
from onsight.tasks.roster import Loaded, Roster

Compose = Callable[[tuple[Message, ...]], tuple[Message, ...]]
"""What a task still does to the messages once their pictures are open; called on a thread of its own."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What a route, the page or the command line asks for; `n` answers to the same messages.

    `compose`: for tasks that write their question, or cut out what they show, by the size of the opened picture.
    `by_page`: each page of the PDF in the last message is asked about apart, one choice each; leaves `n` at 1.
    `caller`: who asks, as the log names them and as those who wait take turns.
    """

    drafts: tuple[Draft, ...]
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    schema: str | None = None
    n: int = 1
    request_id: str = ""
    task: str = "chat"
    tools: ToolUse | None = None
    compose: Compose | None = None
    by_page: bool = False
    caller: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An engine's event and which of the answers (0-based) it belongs to. `page`: what this one is about, by page."""

    index: int
    event: Event
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, collected from its events. `views`: how each picture was seen, in their order."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    usage: Usage
    views: tuple[View, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class Chat:
    """Takes a place in the queue, opens the pictures and videos, generates."""

    def __init__(
        self, roster: Roster, door: MediaDoor, admission: Admission, bookkeepers: Sequence[Bookkeeper] = ()
    ) -> None:
        self._roster = roster
        self._door = door
        self._admission = admission
        self._turns = admission.turns()
        self._bookkeepers = tuple(bookkeepers)

    async def stream(self, call: ChatCall) -> AsyncGenerator[ChoiceEvent, None]:
        """Answer `call` as events; each choice ends with exactly one Finished. Closing it cancels every choice.

        By page, one choice follows the other.

        Raises RequestError, before the first event whenever the request itself is at fault.
        """
        loaded = self._roster.find(call.model)
        record = Record(call.request_id, call.task, loaded.name, call.caller)
        with kept(record, self._bookkeepers):
            _check(call, loaded)
            deadline = self._admission.deadline()
            with self._admission.place(call.n, call.caller), self._admission.pixels(call.caller) as hold:
                known = self._door.known_pixels(_images(call))
                await hold(known)
                async with AsyncExitStack() as turn:
                    await deadline.within(turn.enter_async_context(self._turns.turn(call.caller, call.n)))
                    record.turn_came()
                    messages = await deadline.within(self._open(call, loaded.card, record, hold, known))
                    request = GenerateRequest(messages, call.sampling, call.schema, call.tools, call.caller)
                    choices = _pages(loaded, request) if call.by_page else _choices(loaded, request, call.n)
                    async with aclosing(deadline.follow(choices)) as events:
                        async for choice in events:
                            record.token()
                            if isinstance(choice.event, Finished):
                                record.finished(choice.event, own_prompt=call.by_page)
                            yield choice

    async def _open(
        self, call: ChatCall, card: ModelCard, record: Record, hold: HoldPixels, known: int
    ) -> tuple[Message, ...]:
        """The messages as an engine reads them, their media open; `known` px of the pictures are held already."""
        budget = card.budget(call.task)
        images = [_within(image, budget, self._door.limits.max_pixels) for image in _images(call)]
        videos = [part for draft in call.drafts for part in draft.parts if isinstance(part, VideoRef)]
        door, rule, caller = self._door, card.frames, call.caller
        opened = await door.open_pages(images, lambda pixels: hold(pixels - known), caller) if images else ()
        watched = iter(await door.open_videos(videos, rule, hold, caller) if videos and rule else ())
        record.images, record.videos = sum(map(len, opened)), len(videos)
        record.media_opened()
        unused = iter(opened)
        messages = tuple(_message(draft, unused, watched) for draft in call.drafts)
        return messages if call.compose is None else await asyncio.to_thread(call.compose, messages)


def _images(call: ChatCall) -> list[ImageRef]:
    return [part for draft in call.drafts for part in draft.parts if isinstance(part, ImageRef)]


def _within(image: ImageRef, budget: PixelBudget, largest: int) -> ImageRef:
    """`image` with the card's bounds where the request says nothing; what it does say may go past the other one.

    `largest`: px that the door lets in, which lower the card's bounds.
    """
    options, least, most = image.options, image.options.min_pixels, image.options.max_pixels
    low, high = (None if one is None else min(one, largest) for one in (budget.min_pixels, budget.max_pixels))
    if least is None and (most is None or (low or 0) <= most):
        least = low
    if most is None and (least is None or least <= (high or least)):
        most = high
    return replace(image, options=replace(options, min_pixels=least, max_pixels=most))


def _message(draft: Draft, images: Iterator[tuple[Image, ...]], videos: Iterator[Video]) -> Message:
    """`draft` with each reference replaced by the next opened picture, PDF's pages or video."""
    parts: list[Text | Image | Video | ToolCall] = []
    for part in draft.parts:
        match part:
            case ImageRef():
                parts.extend(next(images))
            case VideoRef():
                parts.append(next(videos))
            case Text() | ToolCall():
                parts.append(part)
    return Message(draft.role, tuple(parts), draft.call_id)


async def collect(events: AsyncGenerator[ChoiceEvent, None], n: int = 1) -> list[Answer]:
    """Fold a stream into its `n` answers, in order of index: a plain answer is the stream, collected."""
    texts: list[list[str]] = [[] for _ in range(n)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
    calls: list[list[ToolCall]] = [[] for _ in range(n)]
    ends: dict[int, Finished] = {}
    async with aclosing(events):
        async for choice in events:
            match choice.event:
                case TextDelta(text, tokens):
                    texts[choice.index].append(text)
                    logprobs[choice.index].extend(tokens)
                case ToolCallDelta() as piece:
                    _add(piece, calls[choice.index])
                case Finished() as end:
                    ends[choice.index] = end
    return [
        Answer("".join(texts[i]), tuple(logprobs[i]), ends[i].reason, ends[i].usage, ends[i].views, tuple(calls[i]))
        for i in range(n)
    ]


async def collect_pages(events: AsyncGenerator[ChoiceEvent, None]) -> list[tuple[int | None, Answer]]:
    """Fold a stream that goes by page into each page and its answer, in order; a picture's page is None."""
    pages: list[tuple[int | None, Answer]] = []
    texts: list[str] = []
    async with aclosing(events):
        async for choice in events:
            match choice.event:
                case TextDelta(text):
                    texts.append(text)
                case Finished() as end:
                    pages.append((choice.page, Answer("".join(texts), (), end.reason, end.usage, end.views)))
                    texts = []
    return pages


def _add(piece: ToolCallDelta, calls: list[ToolCall]) -> None:
    """Take the next piece of a choice's calls; the first one of each call has its id and name."""
    if piece.id is not None and piece.name is not None:
        calls.append(ToolCall(piece.id, piece.name, piece.arguments))
    else:
        calls[piece.index] = replace(calls[piece.index], arguments=calls[piece.index].arguments + piece.arguments)


async def _choices(loaded: Loaded, request: GenerateRequest, n: int) -> AsyncGenerator[ChoiceEvent, None]:
    """The `n` answers' events as they come; the first choice goes ahead, so that the others find its prompt cached."""
    async with aclosing(loaded.engine.generate(request)) as first:
        if n == 1:
            async for event in first:
                yield ChoiceEvent(0, event)
            return
        yield ChoiceEvent(0, await anext(first))
        async with aclosing(
            _merge([first, *(loaded.engine.generate(_nth(request, i)) for i in range(1, n))])
        ) as merged:
            async for choice in merged:
                yield choice


async def _pages(loaded: Loaded, request: GenerateRequest) -> AsyncGenerator[ChoiceEvent, None]:
    """The answers about each picture of the last message, one after the other."""
    requests = page_requests(request)
    async with aclosing(in_turn(loaded.engine, requests)) as events:
        async for one in events:
            (image,) = requests[one.index].messages[-1].images
            yield ChoiceEvent(one.index, one.event, image.page)


def _nth(request: GenerateRequest, index: int) -> GenerateRequest:
    """The request of choice `index`, from 1: a given seed moves on by one a choice: answers differ, and repeat."""
    seed = request.sampling.seed
    return replace(request, sampling=replace(request.sampling, seed=None if seed is None else seed + index))


async def _merge(streams: list[AsyncGenerator[Event, None]]) -> AsyncGenerator[ChoiceEvent, None]:
    """Several streams as one, events in order of arrival; the first error ends them all."""
    arrived: asyncio.Queue[ChoiceEvent | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    arrived.put_nowait(ChoiceEvent(index, event))
        finally:
            arrived.put_nowait(None)

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            choice = await arrived.get()
            if choice is not None:
                yield choice
                continue
            running -= 1
            for task in pumps:
                if task.done():
                    task.result()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _check(call: ChatCall, loaded: Loaded) -> None:
    """What no model can answer, whatever its family."""
    if "chat" not in loaded.card.capabilities:
        raise Unsupported(
            f"model {loaded.name!r} does not chat; it offers {', '.join(loaded.card.capabilities)}", param="model"
        )
    if not call.drafts:
        raise InvalidRequest("messages is empty; send at least one user message", param="messages")
    for index, draft in enumerate(call.drafts):
        if draft.role == "system" and any(not isinstance(part, Text) for part in draft.parts):
            raise InvalidRequest(
                "a system message cannot hold a picture or a video; put it into a user message",
                param=f"messages.{index}.content",
            )
        for part in draft.parts:
            if isinstance(part, ImageRef) and not loaded.card.sees:
                raise Unsupported(
                    f"model {loaded.name!r} reads text only; leave the pictures out, or ask a model that sees",
                    param=part.param,
                )
            if isinstance(part, VideoRef) and loaded.card.frames is None:
                raise Unsupported(
                    f"model {loaded.name!r} does not see videos; send pictures of it, or ask a model that does",
                    param=part.param,
                )
    if call.drafts[-1].role not in ("user", "tool"):
        raise InvalidRequest(
            f"the last message is from {call.drafts[-1].role!r}; it must be from 'user' or 'tool'",
            param=f"messages.{len(call.drafts) - 1}",
        )
    _check_tools(call, loaded)


def _check_tools(call: ChatCall, loaded: Loaded) -> None:
    """Refuse tools that the model cannot call, and results of calls that nobody made."""
    asked: set[str] = set()
    used = False
    for index, draft in enumerate(call.drafts):
        made = [part.id for part in draft.parts if isinstance(part, ToolCall)]
        asked.update(made)
        used = used or bool(made) or draft.role == "tool"
        if draft.role == "tool" and draft.call_id not in asked:
            raise InvalidRequest(
                f"no message before this one calls a tool with id {draft.call_id!r}",
                param=f"messages.{index}.tool_call_id",
            )
    if (used or call.tools is not None) and "tools" not in loaded.card.capabilities:
        raise Unsupported(
            f"model {loaded.name!r} does not call tools; it offers {', '.join(loaded.card.capabilities)}",
            param="messages" if call.tools is None else "tools",
        )
