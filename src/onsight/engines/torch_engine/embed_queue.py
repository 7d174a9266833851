"""Queries and pages that wait for a forward, and who shares the next one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from onsight.core.embedding import Embedding
from onsight.engines.torch_engine.length_groups import grouped
from onsight.engines.torch_engine.prompt import Prompt


@dataclass(eq=False, frozen=True, slots=True)
class Asked:
    """One prepared input, and where its vectors go."""

    prompt: Prompt
    made: asyncio.Future[Embedding]

    @property
    def tokens(self) -> int:
        return len(self.prompt.token_ids)


class EmbedQueue:
    """Queries and pages take turns, so that no query waits for more than one batch of pages, nor a page for ever."""

    def __init__(self, page_tokens: int) -> None:
        """`page_tokens`: most tokens of a batch of pages, padding included, or of one longer page."""
        self._page_tokens = page_tokens
        # Dictionaries keep the order in which their keys came, and lose one from the middle at once.
        self._queries: dict[Asked, None] = {}
        self._pages: dict[Asked, None] = {}
        self._pages_next = False

    def __len__(self) -> int:
        return len(self._queries) + len(self._pages)

    def add(self, asked: Asked) -> None:
        (self._pages if asked.prompt.spans else self._queries)[asked] = None

    def discard(self, asked: Asked) -> None:
        """Forget it if it still waits."""
        self._queries.pop(asked, None)
        self._pages.pop(asked, None)

    def take(self) -> list[Asked]:
        """Whose turn it is: all queries, or the page that came first with others of like length; empty if none wait."""
        pages_now = bool(self._pages) and (self._pages_next or not self._queries)
        self._pages_next = not pages_now
        batch = self._page_batch() if pages_now else list(self._queries)
        for asked in batch:
            self.discard(asked)
        return batch

    def _page_batch(self) -> list[Asked]:
        waiting = list(self._pages)
        groups = grouped([asked.tokens for asked in waiting], self._page_tokens)
        return [waiting[index] for group in groups if 0 in group for index in group]
