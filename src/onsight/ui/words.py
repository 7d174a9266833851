"""The page's words in each language: one table a language, every label, example and error in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from onsight.core.errors import RequestError
from onsight.ui.mistakes import Mistake
from onsight.ui.packaged import packaged

LANGUAGES = ("en", "ru")
"""The first one is for browsers that ask for none of them."""


@dataclass(frozen=True, slots=True)
class Words:
    """One language's table: "section.name" -> text, with {places} for values."""

    language: str
    texts: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        return self.texts[key].format_map(values)

    def sentence(self, error: Mistake | RequestError) -> str:
        """What went wrong, for the one who did it; an error of the server keeps its own words after ours."""
        if isinstance(error, Mistake):
            return self(f"mistake.{error.key}", **error.values)
        key = f"error.{error.code}"
        return self(key if key in self.texts else "error.other", message=error.message)


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
