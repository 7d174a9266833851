"""Queries and pages that wait for a forward, and who shares the next one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice

from onsight.core.embedding import Embedding
from onsight.core.turns import Line
from onsight.engines.torch_engine.length_groups import grouped
from onsight.engines.torch_engine.prompt import Prompt


@dataclass(eq=False, frozen=True, slots=True)
class Asked:
    """One prepared input, where its vectors go, and who asks for them."""

    prompt: Prompt
    made: asyncio.Future[Embedding]
    caller: str = ""

    @property
    def tokens(self) -> int:
        return len(self.prompt.token_ids)


_QUERIES_AT_ONCE = 256
"""Most queries of a batch; many more of one caller would keep the others' from the next one."""


class EmbedQueue:
    """Queries and pages take turns, so that no query waits for more than one batch of pages, nor a page for ever; and
    among each of them, callers."""

    def __init__(self, page_tokens: int) -> None:
        """`page_tokens`: most tokens of a batch of pages, padding included, or of one longer page."""
        self._page_tokens = page_tokens
        self._queries: Line[Asked] = Line()
        self._pages: Line[Asked] = Line()
        self._pages_next = False

    def __len__(self) -> int:
        return len(self._queries) + len(self._pages)

    def add(self, asked: Asked) -> None:
        self._line(asked).add(asked.caller, asked)

    def discard(self, asked: Asked) -> None:
        """Forget it if it still waits."""
        self._line(asked).discard(asked.caller, asked)

    def take(self) -> list[Asked]:
        """Whose turn it is: queries, or the page that is next with others of like length; empty if none wait."""
        pages_now = bool(self._pages) and (self._pages_next or not self._queries)
        self._pages_next = not pages_now
        batch = self._page_batch() if pages_now else list(islice(self._queries, _QUERIES_AT_ONCE))
        for asked in batch:
            self._line(asked).take(asked.caller, asked)
        return batch

    def _line(self, asked: Asked) -> Line[Asked]:
        return self._pages if asked.prompt.spans else self._queries

    def _page_batch(self) -> list[Asked]:
        waiting = list(self._pages)
        groups = grouped([asked.tokens for asked in waiting], self._page_tokens)
        return [waiting[index] for group in groups if 0 in group for index in group]
