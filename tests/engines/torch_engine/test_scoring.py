"""MaxSim is what two plain loops say it is."""

from __future__ import annotations

import random
from array import array

import pytest

from onsight.core.embedding import Embedding
from onsight.core.errors import InvalidRequest
from onsight.engines.torch_engine.scoring import Shelf, max_sim

DIMS = 8


def embedding(vectors: list[list[float]], dims: int = DIMS) -> Embedding:
    return Embedding(array("f", [number for vector in vectors for number in vector]).tobytes(), len(vectors), dims)


def drawn(seed: int, rows: int) -> Embedding:
    dice = random.Random(seed)
    return embedding([[dice.gauss(0, 1) for _ in range(DIMS)] for _ in range(rows)])


def plainly(query: Embedding, page: Embedding) -> float:
    return sum(
        max(sum(a * b for a, b in zip(asked, shown, strict=True)) for shown in page.vectors())
        for asked in query.vectors()
    )


@pytest.mark.parametrize("most_products", [1, 40, 100, 1 << 26])
def test_scores_are_those_of_a_double_loop_however_the_work_is_cut(most_products: int) -> None:
    queries = [drawn(seed, rows) for seed, rows in enumerate((3, 1, 12))]
    pages = [drawn(100 + seed, rows) for seed, rows in enumerate((7, 1, 30, 2, 7))]
    scores = max_sim(queries, pages, most_products)
    for made, query in zip(scores, queries, strict=True):
        assert made == pytest.approx([plainly(query, page) for page in pages], abs=1e-4)


def test_a_page_that_is_wholly_unlike_the_query_scores_below_zero_beside_a_longer_page() -> None:
    along, against = [1.0] + [0.0] * 7, [-1.0] + [0.0] * 7
    ((short, long),) = max_sim([embedding([along, along])], [embedding([against]), embedding([along] * 9)])
    assert (short, long) == (-2.0, 2.0)


def test_nothing_to_compare_is_an_empty_table() -> None:
    assert max_sim([], [drawn(1, 2)]) == []
    assert max_sim([drawn(1, 2), drawn(2, 2)], []) == [[], []]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"\[4, 8\]"):
        max_sim([drawn(1, 2)], [embedding([[1.0] * 4], dims=4)])
    with pytest.raises(InvalidRequest, match="page 1 has no vectors"):
        max_sim([drawn(1, 2)], [drawn(2, 2), embedding([])])
    with pytest.raises(InvalidRequest, match="query 0 has no vectors"):
        max_sim([embedding([])], [drawn(2, 2)])


def unit(seed: int, rows: int) -> Embedding:
    vectors = drawn(seed, rows).vectors()
    return embedding([[number / sum(x * x for x in vector) ** 0.5 for number in vector] for vector in vectors])


@pytest.mark.parametrize("most_products", [1, 100, 1 << 20])
def test_a_shelf_of_bytes_scores_nearly_the_same(most_products: int) -> None:
    pages = [unit(100 + seed, rows) for seed, rows in enumerate((7, 1, 30, 2, 7, 7))]
    shelf = Shelf(pages, "int8", most_products)
    for seed, rows in enumerate((3, 1, 12)):
        query = unit(seed, rows)
        exact = [plainly(query, page) for page in pages]
        assert shelf.scores(query) == pytest.approx(exact, abs=0.01 * rows)
        assert shelf.scores(query) != pytest.approx(exact, abs=1e-7)


def test_a_shelf_is_for_queries_of_its_own_dimensions() -> None:
    assert Shelf([]).scores(drawn(1, 2)) == []
    with pytest.raises(InvalidRequest, match=r"\[4, 8\]"):
        Shelf([drawn(1, 2)]).scores(embedding([[1.0] * 4], dims=4))
