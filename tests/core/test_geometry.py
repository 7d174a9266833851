"""Coordinates are mapped axis by axis, back to the upright original."""

from __future__ import annotations

import pytest

from onsight.core.geometry import Box, Convention, Point, Size, to_model, to_original

ORIGINAL = Size(1920, 1080)
RESIZED = Size(1316, 728)


def test_each_axis_has_its_own_scale() -> None:
    # 1920/1316 = 1.4590 and 1080/728 = 1.4835: one scale for both would be 26 px off at the bottom.
    there = to_original(Point(658, 728), "resized_pixels", RESIZED, ORIGINAL)
    assert (there.x, there.y) == pytest.approx((960.0, 1080.0))


@pytest.mark.parametrize("convention", ["resized_pixels", "0..1000", "0..1"])
def test_a_point_comes_back_where_it_was(convention: Convention) -> None:
    for point in (Point(0, 0), Point(1919.5, 3), Point(700, 1080)):
        model = to_model(point, convention, RESIZED, ORIGINAL)
        back = to_original(model, convention, RESIZED, ORIGINAL)
        assert (back.x, back.y) == pytest.approx((point.x, point.y))


def test_a_point_outside_is_brought_to_the_edge() -> None:
    assert to_original(Point(1200, -5), "0..1000", RESIZED, ORIGINAL) == Point(1920.0, 0.0)


def test_a_box_knows_its_centre_and_what_is_inside() -> None:
    box = Box(10, 20, 30, 60)
    assert box.centre == Point(20, 40)
    assert box.contains(Point(10, 60))
    assert not box.contains(Point(31, 40))
