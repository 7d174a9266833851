"""A typed box: strictly four numbers with commas between, and each mistake named."""

from __future__ import annotations

import pytest

from onsight.core.geometry import Box, Size
from onsight.ui.mistakes import Mistake, check_inside, read_box


@pytest.mark.parametrize("text", ["10,20,110,60", " 10 , 20,110.0 ,6e1 "])
def test_four_numbers_are_a_box(text: str) -> None:
    assert read_box(text) == Box(10, 20, 110, 60)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("", "box_empty", {}),
        ("  ", "box_empty", {}),
        ("1,2,3", "box_count", {"count": 3, "text": "1,2,3"}),
        ("1,2,3,4,", "box_count", {"count": 5, "text": "1,2,3,4,"}),
        ("1 2 3 4", "box_count", {"count": 1, "text": "1 2 3 4"}),
        ("1,2,three,4", "box_number", {"name": "x2", "part": "three"}),
        ("1,,3,4", "box_number", {"name": "y1", "part": ""}),
        ("1,2,3,nan", "box_number", {"name": "y2", "part": "nan"}),
        ("inf,2,3,4", "box_number", {"name": "x1", "part": "inf"}),
        ("-1,2,3,4", "box_negative", {"name": "x1", "part": "-1"}),
        ("5,2,5,4", "box_order", {"name": "x", "low": "5", "high": "5"}),
        ("1,9,3,4", "box_order", {"name": "y", "low": "9", "high": "4"}),
    ],
)
def test_each_mistake_is_named(text: str, key: str, values: dict[str, object]) -> None:
    with pytest.raises(Mistake) as caught:
        read_box(text)
    assert (caught.value.key, caught.value.values) == (key, values)


def test_a_box_beyond_the_picture_is_a_mistake() -> None:
    check_inside(Box(0, 0, 40, 30), Size(40, 30))
    with pytest.raises(Mistake) as caught:
        check_inside(Box(0, 0, 41, 30), Size(40, 30))
    assert caught.value.key == "box_outside"
