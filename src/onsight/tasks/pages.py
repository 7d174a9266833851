"""A document's pages, each asked about apart: several at once, their answers one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from onsight.core.engine import ChatEngine
from onsight.core.generation import Event, GenerateRequest
from onsight.core.messages import Image

_AT_ONCE = 4
"""Pages of one request that the engine works on: enough to share its steps, too few to keep others waiting."""


def page_requests(request: GenerateRequest) -> list[GenerateRequest]:
    """One request for each picture of the last message, with all that is said around it."""
    *before, last = request.messages
    requests: list[GenerateRequest] = []
    for image in last.images:
        parts = tuple(part for part in last.parts if not isinstance(part, Image) or part is image)
        messages = (*before, replace(last, parts=parts))
        requests.append(replace(request, messages=messages))
    return requests


@dataclass(frozen=True, slots=True)
class PageEvent:
    """An engine's event, and which of the requests (0-based) it belongs to."""

    index: int
    event: Event


async def in_turn(engine: ChatEngine, requests: Sequence[GenerateRequest]) -> AsyncGenerator[PageEvent, None]:
    """The requests' events, all of the first one's before the second's; meanwhile the next ones are worked on.

    The first error, in this order, ends it. Closing it cancels all.
    """
    places = asyncio.Semaphore(_AT_ONCE)
    arrived: list[asyncio.Queue[Event | None]] = [asyncio.Queue() for _ in requests]

    async def work(request: GenerateRequest, queue: asyncio.Queue[Event | None]) -> None:
        try:
            async with places, aclosing(engine.generate(request)) as events:
                async for event in events:
                    queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    working = [asyncio.create_task(work(*one)) for one in zip(requests, arrived, strict=True)]
    try:
        for index, (task, queue) in enumerate(zip(working, arrived, strict=True)):
            while (event := await queue.get()) is not None:
                yield PageEvent(index, event)
            await task
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
