"""What every tab works with: the words, the model, and the tasks, asked as the API asks them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, replace

from onsight.core.generation import Event, Finished, TextDelta
from onsight.core.messages import ImageRef, Message
from onsight.core.pages import Pages
from onsight.media.door import MediaDoor
from onsight.media.uploads import Uploads
from onsight.models.card import Capability, ModelCard
from onsight.tasks.admission import Admission
from onsight.tasks.asking import PictureCall
from onsight.tasks.chat import Chat, ChatCall
from onsight.tasks.embed import Embed
from onsight.tasks.roster import AnyLoaded, Loaded, Roster
from onsight.ui.mistakes import Mistake
from onsight.ui.packaged import NO_EXAMPLES, Examples
from onsight.ui.words import LANGUAGES, Words, load_words

_SHOW_EVERY_S = 0.05

CALLER = "page"
"""What to call a visitor of whom nothing is known."""

VISITOR = ContextVar("VISITOR", default=CALLER)
"""Who asks: as the API's callers, by the name of their key or by their address. Set around all that a tab does."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What the composition root hands to the page. `door`: for pages that were embedded and are now to be shown.

    `count`: told of each request and upload by its visitor, it raises Overloaded for one too many. `uploads_bytes`: so
    much of what was uploaded is kept.
    """

    roster: Roster
    chat: Chat
    embed: Embed
    door: MediaDoor
    admission: Admission
    count: Callable[[str], None] | None = None
    uploads_bytes: int = 512 << 20

    @property
    def model(self) -> Loaded:
        """The model that the page speaks to: the first one that chats."""
        return self.roster.chats[0]

    @property
    def models(self) -> tuple[AnyLoaded, ...]:
        """All that the page works with: the first model that chats, and the first one that makes vectors."""
        return (*self.roster.chats[:1], *self.roster.embedders[:1])

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What they can do."""
        return frozenset(one for loaded in self.models for one in loaded.card.capabilities)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer so far; `figures`, a sentence about its cost, comes with the last one."""

    text: str
    figures: str = ""


@dataclass(frozen=True, slots=True)
class Desk:
    """One language's view of the workplace. `examples`: pictures of our own, among the uploads."""

    place: Workplace
    words: Words
    uploads: Uploads
    examples: Examples = NO_EXAMPLES

    def words_for(self, card: ModelCard) -> Words:
        """The words that questions to a model are written in: the page's own, unless it does not read these."""
        known = [language for language in card.languages if language in LANGUAGES]
        return self.words if not known or self.words.language in known else load_words(known[0])

    def begin(self) -> str:
        """Count a request of the visitor's; what to call who asks. Raises Overloaded for one too many."""
        visitor = VISITOR.get()
        if self.place.count is not None:
            self.place.count(visitor)
        return visitor

    async def picture(self, upload: str | None, pages: Pages | None = None) -> PictureCall:
        """The uploaded picture, and the model that shall look at it; `pages`: a PDF is welcome too.

        Raises Mistake when there is none.
        """
        if not upload:
            raise Mistake("no_picture")
        caller = self.begin()
        data = await asyncio.to_thread(self.uploads.read, upload)
        return PictureCall(ImageRef(data, pages=pages), self.place.model, request_id=new_id(), caller=caller)

    async def follow(self, call: ChatCall) -> AsyncGenerator[Said, None]:
        """The answer as it grows, some twenty times a second at most; a PDF's pages have an empty line between.

        Closing it cancels the request.
        """
        cost, shown_s, text = _Cost(), 0.0, ""
        async with aclosing(self.place.chat.stream(call)) as events:
            async for choice in events:
                cost.see(choice.event)
                match choice.event:
                    case TextDelta(piece):
                        text += piece
                        if text.strip() and time.monotonic() - shown_s >= _SHOW_EVERY_S:
                            yield Said(text)
                            shown_s = time.monotonic()
                    case Finished():
                        text = f"{text.strip()}\n\n"
        yield Said(text.strip(), cost.told(self.words))


class _Cost:
    """What an answer took: tokens, and monotonic seconds."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        self._tokens = 0
        self._is_cut = False

    def see(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._first_s = self._first_s or time.monotonic()
            case Finished(reason, usage):
                self._tokens += usage.completion_tokens
                self._is_cut = self._is_cut or reason in ("length", "content_filter")

    def told(self, words: Words) -> str:
        """Tokens, tokens a second after the first, and seconds; and that the answer was cut, if it was."""
        ended_s = time.monotonic()
        first_s = self._first_s or ended_s
        rate = (self._tokens - 1) / max(ended_s - first_s, 1e-6)
        figures = words(
            "page.figures",
            tokens=self._tokens,
            rate=f"{rate:.1f}" if self._tokens > 1 else "—",
            seconds=f"{ended_s - self._began_s:.1f}",
            first=f"{first_s - self._began_s:.2f}",
        )
        return f"{figures} {words('page.cut', tokens=self._tokens)}" if self._is_cut else figures


def new_id() -> str:
    """An id for a request, as the API's boundary gives one to each of its own."""
    return uuid.uuid4().hex


def noting(call: ChatCall, note: Callable[[tuple[Message, ...]], None]) -> ChatCall:
    """`call`, with `note` shown its messages once their pictures are open, on a thread; what it raises ends it."""
    compose = call.compose

    def noted(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        note(messages)
        return messages if compose is None else compose(messages)

    return replace(call, compose=noted)
