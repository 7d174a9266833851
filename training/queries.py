"""What is asked about pages: two or three concepts in words of their own, among words that ask."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from training.lexicon import ADJECTIVES, CONCEPTS, NOUNS
from training.pages import Page

_FORMS: dict[str, tuple[str, ...]] = {
    "N": ("{0}", "the {0}", "which page is about the {0}?", "find the {0}"),
    "A": ("{0}", "what is {0}?", "which page says {0}?"),
    "V": ("who {0}?", "what {0}", "{0}"),
    "NN": (
        "{0} of the {1}", "{0} and {1}", "the {0} of the {1}", "what does the page say of {0} and {1}?", "{0} with {1}",
        "does any page tell me about the {0} and the {1}?", "{0} for the {1}", "{0} {1}",
    ),
    "AN": ("{0} {1}", "the {0} {1}", "which page is about the {0} {1}?", "a {0} {1}", "where is the {0} {1}?"),
    "NV": ("the {0} {1}", "{0} that {1}", "a {0} which {1} what?"),
    "NNN": (
        "{0}, {1} and {2}", "the {0} of the {1} and the {2}", "{0} {1} {2}", "{0} of the {1} with the {2}",
        "find a page with {0}, {1} and {2}",
    ),
    "ANN": ("{0} {1} of the {2}", "{0} {1} and {2}", "the {0} {1} for the {2}", "is there a {0} {1} near the {2}?"),
    "NNV": ("the {0} {2} the {1}", "which {0} {2} the {1}?", "a {0} that {2} any {1}"),
}  # fmt: skip
_ORDER = "ANV"
"""How the concepts of a query are ordered, by kind."""


def kind_of(concept: int) -> str:
    """N, A or V."""
    return "N" if concept < len(NOUNS) else "A" if concept < len(NOUNS) + len(ADJECTIVES) else "V"


def phrase(words: Mapping[int, str], rng: random.Random) -> str:
    """Ask about one to four concepts, each by the word given for it."""
    ordered = sorted(words, key=lambda concept: _ORDER.index(kind_of(concept)))
    forms = _FORMS.get("".join(kind_of(one) for one in ordered), (" ".join("{}" for _ in ordered),))
    return rng.choice(forms).format(*(words[one] for one in ordered))


def any_words(concepts: Iterable[int], rng: random.Random) -> dict[int, str]:
    """For each of ``concepts`` one of its words."""
    return {concept: rng.choice(CONCEPTS[concept]) for concept in sorted(concepts)}


def own_words(page: Page, concepts: Iterable[int]) -> dict[int, str]:
    """For each of ``concepts`` the word that the page has for it."""
    written = {word.concept: word.plain for word in page.words}
    return {concept: written[concept] for concept in sorted(concepts)}


def other_words(page: Page, concepts: Iterable[int], rng: random.Random) -> dict[int, str] | None:
    """For each of ``concepts`` a word that the page does not have; None where one has no other."""
    written = {word.plain for word in page.words}
    left = {concept: [word for word in CONCEPTS[concept] if word not in written] for concept in sorted(concepts)}
    return {concept: rng.choice(words) for concept, words in left.items()} if all(left.values()) else None


def made_up_query(rng: random.Random) -> str:
    """A query about one to four concepts, whether or not a page has them."""
    return phrase(any_words(rng.sample(range(len(CONCEPTS)), rng.choice((1, 2, 2, 3, 3, 4))), rng), rng)


def choose(page: Page, rng: random.Random) -> frozenset[int]:
    """One to three of the concepts of a page that its title does not name, two most often."""
    body = sorted(page.concepts() - page.title_concepts())
    return frozenset(rng.sample(body, min(rng.choice((1, 2, 2, 3)), len(body))))
