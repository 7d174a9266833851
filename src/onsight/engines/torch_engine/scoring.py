"""Late interaction: how well a page answers a query, by the vectors of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from onsight.core.embedding import Embedding
from onsight.core.errors import InvalidRequest

Form = Literal["f32", "int8"]

_MOST_PRODUCTS = 1 << 21
"""Dot products held at once, 4 bytes each: about what the processor's caches hold."""
_STEPS = 127.0
"""int8: a number in -1..1 is the nearest of so many steps to either side."""


def max_sim(
    queries: Sequence[Embedding], pages: Sequence[Embedding], most_products: int = _MOST_PRODUCTS
) -> list[list[float]]:
    """[queries][pages]: the sum over a query's vectors of the greatest dot product with any of the page's vectors.

    Nothing is padded, so no padding can be a page's best match. At most `most_products` dot products are held at once,
    unless one page alone has more. Raises InvalidRequest for an embedding without vectors, or for vectors of different
    dimensions.
    """
    _check(queries, pages)
    if not queries or not pages:
        return [[] for _ in queries]
    shelf = Shelf(pages, most_products=most_products)
    return [shelf.scores(query) for query in queries]


class Shelf:
    """Pages laid out so that one query after another is compared with all of them."""

    def __init__(self, pages: Sequence[Embedding], form: Form = "f32", most_products: int = _MOST_PRODUCTS) -> None:
        """`form` int8 takes a quarter of the memory, and a search less than half of the time, for scores that are
        rounded. Raises InvalidRequest as `max_sim` does."""
        _check((), pages)
        self._form: Form = form
        self._most_products = most_products
        self._lengths = [page.rows for page in pages]
        dims = pages[0].dims if pages else 0
        self._rows = torch.empty(
            sum(self._lengths), dims, dtype=torch.float32 if form == "f32" else torch.int8
        )  # [all page vectors, dims]
        start = 0
        for page in pages:
            self._rows[start : start + page.rows] = _in_form(page, form)
            start += page.rows

    def scores(self, query: Embedding) -> list[float]:
        """One for each page. Raises InvalidRequest as `max_sim` does."""
        _check((query,), ())
        if not self._lengths:
            return []
        if query.dims != self._rows.shape[1]:
            raise _unlike(query.dims, self._rows.shape[1])
        asked = _in_form(query, self._form)  # [query vectors, dims]
        best = [self._best(asked, *chunk) for chunk in self._chunks(self._most_products // query.rows)]
        totals = torch.cat(best, dim=1).sum(dim=0)
        if self._form == "int8":
            totals = totals / _STEPS**2
        made: list[float] = totals.tolist()
        return made

    def _best(self, asked: torch.Tensor, start: int, lengths: Sequence[int]) -> torch.Tensor:
        """[query vectors, pages]: each one's greatest dot product with a vector of the page."""
        rows = self._rows[start : start + sum(lengths)].T
        products = asked @ rows if self._form == "f32" else torch._int_mm(asked, rows)  # [query vectors, page vectors]
        if len(set(lengths)) == 1:
            return products.view(len(asked), len(lengths), -1).amax(dim=2)
        return torch.stack([part.amax(dim=1) for part in torch.split(products, list(lengths), dim=1)], dim=1)

    def _chunks(self, most_rows: int) -> Iterator[tuple[int, list[int]]]:
        """(first row, rows of each page) of neighbouring pages, as many as have no more than `most_rows` vectors, and
        at least one."""
        start = 0
        lengths: list[int] = []
        for length in self._lengths:
            if lengths and sum(lengths) + length > most_rows:
                yield start, lengths
                start, lengths = start + sum(lengths), []
            lengths.append(length)
        yield start, lengths


def _check(queries: Sequence[Embedding], pages: Sequence[Embedding]) -> None:
    dims = {one.dims for one in (*queries, *pages)}
    if len(dims) > 1:
        raise _unlike(*dims)
    for kind, embeddings in (("query", queries), ("page", pages)):
        for number, one in enumerate(embeddings):
            if one.rows < 1:
                raise InvalidRequest(f"{kind} {number} has no vectors, so nothing can be compared with it")


def _unlike(*dims: int) -> InvalidRequest:
    return InvalidRequest(f"vectors of {sorted(dims)} numbers cannot be compared; embed all with one model")


def _in_form(embedding: Embedding, form: Form) -> torch.Tensor:
    """[rows, dims]."""
    rows = torch.frombuffer(bytearray(embedding.values), dtype=torch.float32).view(embedding.rows, embedding.dims)
    return rows if form == "f32" else (rows * _STEPS).round().clamp(-_STEPS, _STEPS).to(torch.int8)
