"""Late interaction: how well a page answers a query, by the vectors of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from onsight.core.embedding import Embedding
from onsight.core.errors import InvalidRequest

_MOST_PRODUCTS = 1 << 26


def max_sim(
    queries: Sequence[Embedding], pages: Sequence[Embedding], most_products: int = _MOST_PRODUCTS
) -> list[list[float]]:
    """[queries][pages]: the sum over a query's vectors of the greatest dot product with any of the page's vectors.

    Nothing is padded, so no padding can be a page's best match. At most `most_products` dot products (4 bytes each)
    are held at once, unless one page alone has more. Raises InvalidRequest for an embedding without vectors, or for
    vectors of different dimensions.
    """
    _check(queries, pages)
    if not queries or not pages:
        return [[] for _ in queries]
    asked = torch.cat([_tensor(query) for query in queries])  # [all query vectors, dims]
    best = torch.cat([
        _best(asked, chunk) for chunk in _chunks(pages, most_products // len(asked))
    ])  # [pages, all query vectors]  # fmt: skip
    sums = [part.sum(dim=1) for part in torch.split(best, [query.rows for query in queries], dim=1)]
    scores: list[list[float]] = torch.stack(sums).tolist()
    return scores


def _best(asked: torch.Tensor, pages: Sequence[Embedding]) -> torch.Tensor:
    """[pages, query vectors]: each query vector's greatest dot product with a vector of the page."""
    products = torch.cat([_tensor(page) for page in pages]) @ asked.T  # [all page vectors, query vectors]
    return torch.segment_reduce(products, "max", lengths=torch.tensor([page.rows for page in pages]))


def _chunks(pages: Sequence[Embedding], most_rows: int) -> Iterator[list[Embedding]]:
    """Neighbouring pages, as many together as have no more than `most_rows` vectors, and at least one."""
    chunk: list[Embedding] = []
    rows = 0
    for page in pages:
        if chunk and rows + page.rows > most_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(page)
        rows += page.rows
    yield chunk


def _check(queries: Sequence[Embedding], pages: Sequence[Embedding]) -> None:
    dims = {one.dims for one in (*queries, *pages)}
    if len(dims) > 1:
        raise InvalidRequest(f"vectors of {sorted(dims)} numbers cannot be compared; embed all with one model")
    for kind, embeddings in (("query", queries), ("page", pages)):
        for number, one in enumerate(embeddings):
            if one.rows < 1:
                raise InvalidRequest(f"{kind} {number} has no vectors, so nothing can be compared with it")


def _tensor(embedding: Embedding) -> torch.Tensor:
    """[rows, dims], float32."""
    return torch.frombuffer(bytearray(embedding.values), dtype=torch.float32).view(embedding.rows, embedding.dims)
