"""What every tab works with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ui.conftest import CARD, Office


@pytest.mark.parametrize(
    ("languages", "page", "asked_in"),
    [
        ((), "ru", "ru"),
        (("en",), "ru", "en"),
        (("ru", "en"), "en", "en"),
        (("zh",), "ru", "ru"),
        (("zh", "en"), "ru", "en"),
    ],
)
def test_questions_of_ours_are_in_a_language_that_the_model_reads(
    furnish: object, languages: tuple[str, ...], page: str, asked_in: str
) -> None:
    office: Office = furnish(page)
    assert office.desk.words_for(replace(CARD, languages=languages)).language == asked_in
