"""What counts as JSON in a model's answer."""

from __future__ import annotations

import pytest

from onsight.core.json_text import is_json, read_json


@pytest.mark.parametrize(
    ("text", "is_one"),
    [('{"a": [1, null]}', True), (' "x" ', True), ("", False), ("{} {}", False), ("NaN", False), ("[" * 9000, False)],
)
def test_one_value_and_nothing_else(text: str, is_one: bool) -> None:
    assert is_json(text) == is_one


def test_a_number_of_any_length_can_be_read_as_a_float() -> None:
    assert read_json(f"[1, {'9' * 9000}, -2.5]", integer=float) == [1.0, float("inf"), -2.5]
