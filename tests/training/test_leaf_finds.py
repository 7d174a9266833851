"""Leaf finds what is asked for in a small booklet, and nothing once the pictures are shuffled."""

from __future__ import annotations

import pytest

from onsight.core.embedding import Embedding
from training.evaluate_leaf import FIRST_SEED, STYLE, Query, Retriever, Scores, judge, strange_pages
from training.leaf import LEAF
from training.lexicon import UNTAUGHT_WORDS
from training.pages import draw_page

pytestmark = pytest.mark.model

BOOKLET = [draw_page(FIRST_SEED + 50_000 + number, STYLE) for number in range(10)]
ASKED = [
    "illness of the aunt", "the ugly drum", "shore with fox", "island rocket", "a round store near the stream",
    "pass to the star", "which page is about the holy comet?", "the yearly paper", "telescope in the meadow",
    "gravel and melody",
]  # fmt: skip
"""One for each page; shore, store, stream, pass, yearly, paper and melody are other words than the page's own."""


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return Retriever(LEAF)


@pytest.fixture(scope="module")
def pages(retriever: Retriever) -> list[Embedding]:
    return retriever.pages(BOOKLET)


def test_the_right_page_of_a_booklet_is_found(retriever: Retriever, pages: list[Embedding]) -> None:
    queries = [Query("booklet", text, page) for page, text in enumerate(ASKED)]
    scores = retriever.scores(queries, pages)
    found = [max(range(len(row)), key=row.__getitem__) for row in scores]
    assert sum(page == query.page for page, query in zip(found, queries, strict=True)) >= 9, found
    assert judge(queries, scores).five == 1.0


def test_shuffled_pictures_leave_chance(retriever: Retriever, pages: list[Embedding]) -> None:
    queries = [Query("booklet", text, page) for page, text in enumerate(ASKED)]
    scores = retriever.scores(queries, pages)
    assert judge(queries, scores, shift=5).first <= 0.2


def test_words_that_mean_nothing_move_no_page(retriever: Retriever, pages: list[Embedding]) -> None:
    plain, asking = "telescope meadow", "please find me the page which says telescope in that meadow"
    first, second = retriever.scores([Query("plain", plain, 8), Query("asking", asking, 8)], pages)
    assert first.index(max(first)) == second.index(max(second)) == 8
    spread = max(first) - min(first)
    moved = [one - other for one, other in zip(first, second, strict=True)]
    assert max(moved) - min(moved) < 0.5 * spread


def test_figures_are_counted_by_rank_and_a_tie_is_no_find() -> None:
    queries = [Query("x", "a", 0), Query("x", "b", 1)]
    scores = [[3.0, 1.0, 2.0], [5.0, 4.0, 3.0]]
    assert judge(queries, scores) == Scores(0.5, 1.0, pytest.approx((1 + 0.63093) / 2, abs=1e-4), 2)  # type: ignore[arg-type]
    assert judge(queries, [[1.0, 1.0, 1.0]] * 2).first == 0.0
    assert judge(queries, scores, shift=1).first == 0.0


def test_strange_words_are_on_their_own_pages_alone() -> None:
    pages, queries = strange_pages(5)
    for number, (page, query) in enumerate(zip(pages, queries, strict=True)):
        assert (query.text, query.page) == (UNTAUGHT_WORDS[number], number)
        assert [word.text for word in page.words if word.text in UNTAUGHT_WORDS] == [query.text]
