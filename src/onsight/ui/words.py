"""The page's words in each language: one table a language, every label, example and error in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from onsight.core.errors import RequestError
from onsight.ui.mistakes import Mistake
from onsight.ui.packaged import packaged

_WHOLE = ("queue_full", "unavailable", "upload_gone")
"""Codes of errors whose sentence leaves nothing to be told."""

LANGUAGES = ("en", "ru")
"""The first one is for browsers that ask for none of them."""


@dataclass(frozen=True, slots=True)
class Words:
    """One language's table: "section.name" -> text, with {places} for values."""

    language: str
    texts: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        return self.texts[key].format_map(values)

    def section(self, name: str) -> dict[str, str]:
        """All of one section: name -> text."""
        beginning = f"{name}."
        return {key.removeprefix(beginning): text for key, text in self.texts.items() if key.startswith(beginning)}

    def sentence(self, error: Mistake | RequestError) -> str:
        """What went wrong, for the one who did it."""
        if isinstance(error, Mistake):
            return self(f"mistake.{error.key}", **error.values)
        key = f"error.{error.code}"
        return self(key if key in self.texts else "error.other")

    def details(self, error: Mistake | RequestError) -> str:
        """The server's own words, in English, with what the sentence leaves out; "" where that is nothing."""
        return "" if isinstance(error, Mistake) or error.code in _WHOLE else error.message


def load_words(language: str) -> Words:
    """The table of `language`, one of LANGUAGES."""
    sections = tomllib.loads(packaged(f"words/{language}.toml"))
    return Words(
        language,
        {f"{section}.{name}": text for section, table in sections.items() for name, text in table.items()},
    )


def choose_language(accepted: str) -> str:
    """The language of LANGUAGES that a browser likes best, by its Accept-Language header."""
    liked = []
    for place, item in enumerate(accepted.split(",")):
        tag, _, weight = item.partition(";")
        language = tag.strip().lower().partition("-")[0]
        if language in LANGUAGES:
            liked.append((-_weight(weight), place, language))
    return min(liked)[2] if liked else LANGUAGES[0]


def _weight(text: str) -> float:
    try:
        return float(text.strip().removeprefix("q="))
    except ValueError:
        return 1.0
