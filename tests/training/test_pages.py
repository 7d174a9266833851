"""Pages are the same for the same seed, their words stand where they are said to, and queries are about them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from training.draw import BUILT_IN_FONT
from training.evaluate_leaf import FIRST_SEED, OTHER_WORDS, RARE, STYLE, queries_about
from training.lexicon import ASKING_WORDS, CONCEPT_OF, CONCEPTS, UNTAUGHT_WORDS, WORDS
from training.pages import FAMILY, MOST_PIXELS, PageStyle, draw_page
from training.queries import any_words, made_up_query, other_words, phrase

SEEDS = range(40)


def test_same_seed_same_page() -> None:
    first, second = draw_page(7), draw_page(7)
    assert first.words == second.words
    assert first.image.tobytes() == second.image.tobytes()
    assert draw_page(8).words != first.words


def test_every_word_means_one_thing() -> None:
    assert len(WORDS) == sum(len(words) for words in CONCEPTS)
    assert not set(WORDS) & set(ASKING_WORDS)
    assert not set(WORDS) & set(UNTAUGHT_WORDS)
    assert all(word == word.lower() and word.isalpha() for word in (*WORDS, *ASKING_WORDS, *UNTAUGHT_WORDS))


@pytest.mark.parametrize("style", [PageStyle(enlarged=0.0), PageStyle(enlarged=0.0, packed=1.0)])
def test_ink_is_where_words_are(style: PageStyle) -> None:
    for seed in SEEDS:
        page = draw_page(seed, style)
        pixels = np.asarray(page.image).astype(int)
        assert page.image.width * page.image.height <= MOST_PIXELS
        for word in page.words:
            left, right = int(word.edges[0]), int(word.edges[-1])
            assert 0 <= left < right <= page.image.width
            assert 0 <= word.top < word.bottom <= page.image.height
            assert len(word.edges) == len(word.text) + 1
            area = pixels[int(word.top) : int(word.bottom) + 1, left:right]
            assert np.ptp(area, axis=(0, 1)).max() > 60, (seed, word)


def test_words_stand_apart() -> None:
    for seed in SEEDS:
        page = draw_page(seed)
        taken = np.zeros((page.image.height, page.image.width), bool)
        for word in page.words:
            area = taken[int(word.top) + 1 : int(word.bottom), int(word.edges[0]) : int(word.edges[-1])]
            assert not area.any(), (seed, word)
            area[:] = True


def test_untaught_words_stay_out_of_training_and_are_drawn_when_asked_for() -> None:
    drawn = {word.plain for seed in range(200) for word in draw_page(seed).words}
    assert not drawn & set(UNTAUGHT_WORDS)
    assert len(drawn & set(WORDS)) > 0.95 * len(WORDS)
    page = draw_page(1, PageStyle(strange=("zebra",)))
    assert [word.concept for word in page.words if word.text == "zebra"] == [None]


def test_a_family_shares_what_it_speaks_of() -> None:
    def shared(first: int, second: int) -> int:
        return len(draw_page(first).concepts() & draw_page(second).concepts())

    related = sum(shared(seed * FAMILY, seed * FAMILY + 1) for seed in SEEDS)
    strangers = sum(shared(seed * FAMILY, (seed + 1) * FAMILY) for seed in SEEDS)
    assert related > 2 * strangers


def test_evaluation_asks_what_one_page_alone_answers_and_never_its_title() -> None:
    pages = [draw_page(FIRST_SEED + number, STYLE) for number in SEEDS]
    queries = queries_about(pages)
    assert STYLE.fonts == (BUILT_IN_FONT,)
    assert {query.kind for query in queries} == {RARE, OTHER_WORDS}
    assert len(queries) > 1.9 * len(pages)
    for query in queries:
        words = [word.strip("?,") for word in query.text.split()]
        asked = {CONCEPT_OF[word] for word in words if word in CONCEPT_OF}
        assert set(words) <= {*WORDS, *ASKING_WORDS}
        assert 2 <= len(asked) <= 3
        assert [number for number, page in enumerate(pages) if asked <= page.concepts()] == [query.page]
        page = pages[query.page]
        assert not asked & page.title_concepts()
        written = {word.plain for word in page.words}
        content = {word for word in words if word in CONCEPT_OF}
        assert content <= written if query.kind == RARE else not content & written


def test_phrases_have_every_word_that_they_are_given() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = any_words(rng.sample(range(len(CONCEPTS)), rng.randint(1, 4)), rng)
        said = phrase(words, rng).replace(",", "").replace("?", "").split()
        assert set(words.values()) <= set(said)
        assert set(said) <= {*words.values(), *ASKING_WORDS}
    assert made_up_query(random.Random(5)) == made_up_query(random.Random(5))


def test_a_word_without_another_has_no_paraphrase() -> None:
    page = draw_page(3)
    alone = next(number for number, words in enumerate(CONCEPTS) if len(words) == 1)
    written = next(word.concept for word in page.words if word.concept is not None and len(CONCEPTS[word.concept]) > 2)
    assert alone not in page.concepts()
    assert other_words(page, [alone], random.Random(0)) == {alone: CONCEPTS[alone][0]}
    found = other_words(page, [written], random.Random(0))
    assert found is not None
    assert found[written] not in {word.plain for word in page.words}
