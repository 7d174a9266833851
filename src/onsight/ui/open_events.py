"""What visitors asked of the page and have not read yet; Gradio alone would take any number, and keep every answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onsight.core.errors import Overloaded
from onsight.tasks.admission import Admission

if TYPE_CHECKING:  # Gradio takes seconds to load, and is not there without the extra `ui`
    from gradio.queueing import Queue

_MOST = 1000
"""Gradio drops the answers of all but the last 2000 tabs of a language, those that are being written too."""

_UNREAD_S = 60.0
"""So long after it was asked, an answer that nobody reads is dropped. A browser comes for it at once."""


@dataclass(slots=True)
class _Tab:
    """One tab of a browser, and when it last asked (monotonic s); `reading`: its streams that are open."""

    visitor: str
    asked_s: float
    asking: int = 0
    reading: int = 0


class OpenEvents:
    """Counts the events of all languages from when they are asked until they were read, in Gradio's own books.

    They are as many as the queue has places, and a visitor's as many as one caller's may be. Gradio runs that many at
    once, so that none of them waits but in our own queue.
    """

    def __init__(self, admission: Admission) -> None:
        self.most = min(admission.places, _MOST)
        self._most_of_one = min(admission.most_places, self.most)
        self._queues: dict[str, Queue] = {}
        self._tabs: dict[tuple[str, str], _Tab] = {}

    def watch(self, language: str, queue: Queue) -> None:
        self._queues[language] = queue

    @contextmanager
    def asking(self, language: str, tab: str, visitor: str) -> Iterator[None]:
        """Around handing one event to Gradio. Raises Overloaded where too many are open."""
        self._forget()
        held: Counter[str] = Counter()
        for place, each in self._tabs.items():
            held[each.visitor] += each.asking + self._unread(place)
        if held.total() >= self.most:
            raise Overloaded(f"all {self.most} events that the page may have open are; try again in a moment")
        if held[visitor] >= self._most_of_one:
            raise Overloaded(
                f"{held[visitor]} of your events on the page are open, and {self._most_of_one} may be; try again when"
                " one has ended (--max-queue-caller)"
            )
        own = self._tabs.setdefault((language, tab), _Tab(visitor, 0))
        own.visitor, own.asked_s = visitor, time.monotonic()
        own.asking += 1
        try:
            yield
        finally:
            own.asking -= 1

    @contextmanager
    def reading(self, language: str, tab: str) -> Iterator[None]:
        """Around a stream of a tab's answers."""
        own = self._tabs.get((language, tab), _Tab("", 0))
        own.reading += 1
        try:
            yield
        finally:
            own.reading -= 1

    def _forget(self) -> None:
        """Take tabs of which nothing is open from our books and Gradio's, which it would keep."""
        running = {
            (language, event.session_hash)
            for language, queue in self._queues.items()
            for event in queue.event_ids_to_events.values()
        }
        late_s = time.monotonic() - _UNREAD_S
        for place, tab in list(self._tabs.items()):
            awaited = self._unread(place) and (tab.reading or tab.asked_s > late_s)
            if not (tab.asking or awaited or place in running):
                queue, name = self._queues[place[0]], place[1]
                queue.pending_messages_per_session.pop(name, None)
                queue.pending_event_ids_session.pop(name, None)
                del self._tabs[place]

    def _unread(self, place: tuple[str, str]) -> int:
        """Events of a tab whose answers it has not read to the end."""
        return len(self._queues[place[0]].pending_event_ids_session.get(place[1], ()))
