"""Which pages of a document a client means."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from onsight.core.errors import InvalidRequest

_SPAN = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)
_MOST_SPANS = 100


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages by their numbers, from 1, in the order in which they are looked at.

    `spans`: (first, last) each, both included; none means every page. `param`: where they stood in the request, for
    error texts.
    """

    spans: tuple[tuple[int, int], ...] = ()
    param: str | None = None

    def pick(self, total: int) -> range | tuple[int, ...]:
        """The numbers that are meant in a document of `total` pages. Raises InvalidRequest for one that it lacks."""
        for _, last in self.spans:
            if last > total:
                raise InvalidRequest(
                    f"page {last} is asked for, but the PDF has {total}; ask for 1-{total}", param=self.param
                )
        if not self.spans:
            return range(1, total + 1)
        return tuple(number for first, last in self.spans for number in range(first, last + 1))


def read_spans(text: str) -> tuple[tuple[int, int], ...]:
    """The spans in "1-3,7". Raises ValueError that says what is wrong with the text."""
    parts = text.split(",")
    if len(parts) > _MOST_SPANS:
        raise ValueError(f"it has {len(parts)} parts; {_MOST_SPANS} at most are read")
    spans = []
    for part in parts:
        match = _SPAN.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is no page; write numbers and ranges, like 1-3,7")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if first < 1:
            raise ValueError("there is no page 0; pages count from 1")
        if last < first:
            raise ValueError(f"{part.strip()} runs backwards; write {last}-{first}")
        spans.append((first, last))
    ordered = sorted(spans)
    for (_, before), (after, _) in itertools.pairwise(ordered):
        if after <= before:
            raise ValueError(f"page {after} is named twice")
    return tuple(spans)
