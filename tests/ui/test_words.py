"""The table of words: both languages whole, every key that the page asks for in it, none besides."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from onsight.core import errors
from onsight.core.errors import Overloaded, RequestError
from onsight.ui.mistakes import Mistake
from onsight.ui.words import LANGUAGES, choose_language, load_words

SOURCE = Path(__file__).parents[2] / "src" / "onsight" / "ui"


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_language_has_every_key_with_the_same_places() -> None:
    first, *others = (load_words(language).texts for language in LANGUAGES)
    for other in others:
        assert set(first) == set(other)
        assert {key: places(text) for key, text in first.items()} == {key: places(text) for key, text in other.items()}
        same = {key for key in first if first[key] == other[key]}
        assert same <= {"page.title", "locate.placeholder", "page.figures"}


def test_the_page_asks_for_no_key_that_is_missing_and_leaves_none_unused() -> None:
    source = "".join(path.read_text("utf-8") for path in sorted(SOURCE.glob("*.py")))
    asked = set(re.findall(r'["\']((?:page|gate|chat|ocr|region|locate|search|captions|error)\.\w+)["\']', source))
    asked |= {f"mistake.{key}" for key in re.findall(r'Mistake\(\s*"(\w+)"', source)}
    known = set(load_words("en").texts)
    assert asked <= known
    built = re.compile(
        r"error\.|labels\.|page\.(state|only)_|locate\.(point|box)$|search\.(rank|place|score)$"
        r"|captions\.(short|normal|long|file|caption|csv|jsonl)"
    )
    assert {key for key in known - asked if not built.match(key)} == set()


def test_errors_of_the_server_have_a_sentence_of_their_own() -> None:
    codes = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)}
    known = {key.removeprefix("error.") for key in load_words("ru").texts if key.startswith("error.")}
    # What only the API's clients can meet, and what a tab words itself.
    assert codes - known == {"error", "model_not_found", "unreadable_answer"}


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("en-GB,en;q=0.9,ru;q=0.8", "en"),
        ("de;q=1.0, ru;q=0.5, en;q=0.4", "ru"),
        ("de", "en"),
        ("", "en"),
        ("ru;q=nonsense", "ru"),
    ],
)
def test_the_browsers_language_is_chosen(accepted: str, language: str) -> None:
    assert choose_language(accepted) == language


def test_an_error_is_a_sentence_in_the_visitors_language() -> None:
    words = load_words("ru")
    assert words.sentence(Overloaded("all 64 places are taken")) == "Сервер занят. Попробуйте через минуту."
    assert words.sentence(Mistake("box_number", name="x2", part="три")) == "x2 — это «три», а должно быть число."
    odd = RequestError("it is {odd}")
    assert (words.sentence(odd), words.details(odd)) == ("Не получилось.", "it is {odd}")
    assert words.details(Overloaded("all 64 places are taken")) == ""
