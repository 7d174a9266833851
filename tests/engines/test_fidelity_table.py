"""The table of differences is whole, and nothing in it is over the bound."""

from __future__ import annotations

import pytest

from tests.engines.fidelity import TOLERANCE, columns, note
from tests.engines.fidelity_table import PATH, missing, read, render

TITLE = next(iter(columns()))


def test_the_table_in_the_repository_has_every_family_and_check_and_none_is_over_the_bound() -> None:
    largest = read(PATH.read_text("utf-8"))
    assert missing(largest) == []
    assert set(largest) == {(name, check) for name, checks in columns().items() for check in checks}
    assert max(largest.values()) <= TOLERANCE


def test_what_is_written_can_be_read_again() -> None:
    largest = {(name, check): 2.5e-6 for name, checks in columns().items() for check in checks}
    del largest[TITLE, "text only"]
    text = render(largest, [("commit", "abc"), ("check", "no row of the table")])
    assert read(text) == largest
    assert missing(read(text)) == [(TITLE, "text only")]


def test_a_difference_over_the_bound_and_a_check_that_nobody_knows_are_refused() -> None:
    noted: list[object] = []
    note(lambda name, value: noted.append((name, value)), TITLE, "text only", TOLERANCE)
    assert noted == [("fidelity", (TITLE, "text only", TOLERANCE))]
    for check, difference in (("text only", TOLERANCE * 1.01), ("made up", 0.0)):
        with pytest.raises(AssertionError):
            note(lambda name, value: noted.append((name, value)), TITLE, check, difference)
    assert len(noted) == 1
