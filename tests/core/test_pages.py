"""Pages are named as people name them, and every mistake in it is told."""

from __future__ import annotations

import pytest

from onsight.core.errors import InvalidRequest
from onsight.core.pages import Pages, read_spans


def test_numbers_and_ranges_keep_the_order_in_which_they_are_written() -> None:
    spans = read_spans(" 7, 1 - 3 ,5")
    assert spans == ((7, 7), (1, 3), (5, 5))
    assert list(Pages(spans).pick(7)) == [7, 1, 2, 3, 5]
    assert list(Pages().pick(3)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no page; write numbers and ranges, like 1-3,7"),
        ("1,,2", "'' is no page"),
        ("1-", "'1-' is no page"),
        ("-3", "'-3' is no page"),
        ("one", "'one' is no page"),
        ("1.5", "is no page"),
        ("٣", "is no page"),
        ("1234567890", "is no page"),
        ("0", "there is no page 0; pages count from 1"),
        ("0-2", "there is no page 0"),
        ("3-1", "3-1 runs backwards; write 1-3"),
        ("1-3,2", "page 2 is named twice"),
        ("5,1-9", "page 5 is named twice"),
        ("1-2,2", "page 2 is named twice"),
        ("1," * 100 + "1", "it has 101 parts; 100 at most are read"),
    ],
)
def test_what_is_no_page_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_spans(text)


def test_a_page_that_the_document_lacks_is_refused_under_its_own_field() -> None:
    with pytest.raises(InvalidRequest, match="page 999999999 is asked for, but the PDF has 3; ask for 1-3") as caught:
        Pages(read_spans("1-999999999"), "pages").pick(3)
    assert caught.value.param == "pages"
