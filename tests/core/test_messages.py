"""Pictures are known by what they show."""

from __future__ import annotations

import pytest

from onsight.core.messages import Image


def test_two_shapes_of_the_same_bytes_are_two_pictures() -> None:
    pixels = bytes([10, 20, 30]) * (30 * 150)
    assert Image.of(pixels, 30, 150).digest != Image.of(pixels, 150, 30).digest


def test_the_same_pixels_are_the_same_picture_whatever_its_options() -> None:
    assert Image.of(b"abc", 1, 1).digest == Image.of(b"abc", 1, 1).digest


def test_bytes_that_do_not_fit_the_size_are_refused() -> None:
    with pytest.raises(ValueError, match="2x1"):
        Image.of(b"abc", 2, 1)
