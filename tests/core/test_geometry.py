"""Coordinates are mapped axis by axis, back to the upright original."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import get_args

import pytest

from onsight.core.geometry import (
    Box,
    Convention,
    Point,
    Size,
    View,
    around,
    lies_outside,
    to_model,
    to_original,
    to_relative,
)

ORIGINAL = Size(1920, 1080)
VIEW = View(ORIGINAL, Size(1316, 728))
UNIT: dict[Convention, float] = {"resized_pixels": 1.0, "0..1000": 1.0, "0..1": 0.001}
"""The smallest step in which models write each convention."""


def sizes(count: int) -> Iterator[Size]:
    """Sizes of 30 to 8000 px a side, at aspects up to 150; the extremes among them."""
    chance = random.Random(5)
    yield from (Size(30, 30), Size(8000, 8000), Size(8000, 54), Size(54, 8000), Size(4500, 30), Size(30, 4500))
    while count:
        width, height = (round(30 * (8000 / 30) ** chance.random()) for _ in range(2))
        if max(width, height) <= 150 * min(width, height):
            yield Size(width, height)
            count -= 1


def test_each_axis_has_its_own_scale() -> None:
    # 1920/1316 = 1.4590 and 1080/728 = 1.4835: one scale for both would be 26 px off at the bottom.
    there = to_original(Point(658, 728), "resized_pixels", VIEW)
    assert (there.x, there.y) == pytest.approx((960.0, 1080.0))


@pytest.mark.parametrize("convention", get_args(Convention))
def test_a_point_written_in_whole_units_comes_back_within_half_of_one(convention: Convention) -> None:
    chance = random.Random(7)
    unit = UNIT[convention]
    for original in sizes(2000):
        seen = Size(chance.randint(28, 4000), chance.randint(28, 4000))
        view = View(original, seen)
        point = Point(chance.uniform(0, original.width), chance.uniform(0, original.height))
        said = to_model(point, convention, view)
        back = to_original(Point(round(said.x / unit) * unit, round(said.y / unit) * unit), convention, view)
        whole = to_model(Point(original.width, original.height), convention, view)
        assert abs(back.x - point.x) <= 0.5 * unit * original.width / whole.x + 1e-6
        assert abs(back.y - point.y) <= 0.5 * unit * original.height / whole.y + 1e-6
        assert (whole.x, whole.y) == {"resized_pixels": (seen.width, seen.height), "0..1000": (1000, 1000)}.get(
            convention, (1, 1)
        )


def test_a_point_outside_is_brought_to_the_edge() -> None:
    assert to_original(Point(1200, -5), "0..1000", VIEW) == Point(1920.0, 0.0)


def test_a_point_on_the_edge_is_inside_and_one_far_off_is_not() -> None:
    for inside in (Point(0, 0), Point(1316, 728), Point(1320, -2)):
        assert not lies_outside(inside, "resized_pixels", VIEW)
    for outside in (Point(1400, 5), Point(5, 800), Point(-20, 5)):
        assert lies_outside(outside, "resized_pixels", VIEW)


def test_a_share_is_of_each_axis_own_length() -> None:
    assert to_relative(Point(480, 540), ORIGINAL) == Point(0.25, 0.5)


def test_a_box_knows_its_centre_and_what_is_inside() -> None:
    box = Box(10, 20, 30, 60)
    assert box.centre == Point(20, 40)
    assert box.contains(Point(10, 60))
    assert not box.contains(Point(31, 40))


def test_the_margin_around_a_box_stays_in_the_picture_and_leaves_something_to_look_at() -> None:
    chance = random.Random(9)
    for size in sizes(1000):
        x1, x2 = sorted(chance.uniform(0, size.width) for _ in range(2))
        y1, y2 = sorted(chance.uniform(0, size.height) for _ in range(2))
        cut = around(Box(x1, y1, x2, y2), size)
        assert all(edge == int(edge) for edge in (cut.x1, cut.y1, cut.x2, cut.y2))
        assert 0 <= cut.x1 <= x1 <= x2 <= cut.x2 <= size.width
        assert 0 <= cut.y1 <= y1 <= y2 <= cut.y2 <= size.height
        width, height = cut.x2 - cut.x1, cut.y2 - cut.y1
        assert width >= min(32, size.width)
        assert height >= min(32, size.height)
        assert max(width, height) <= max(33 * min(width, height), 151 * min(size.width, size.height))


def test_the_margin_is_a_tenth_of_each_side() -> None:
    assert around(Box(500, 300, 700, 400), ORIGINAL) == Box(480, 290, 720, 410)
