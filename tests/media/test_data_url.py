"""A data: URL is base64 of an image, of a bounded length, or a clear refusal."""

from __future__ import annotations

import base64
import random

import pytest

from onsight.core.errors import InvalidMedia, TooLarge
from onsight.media.data_url import check_data_url, decode_data_url
from onsight.media.limits import MediaLimits
from tests.media.pictures import data_url, open_one, plain

LIMITS = MediaLimits()


def message(url: str) -> str:
    try:
        check_data_url(url, LIMITS)
        decode_data_url(url, LIMITS)
    except InvalidMedia as error:
        return error.message
    pytest.fail("it was not refused")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 196_608, 262_144, 700_001])
def test_bytes_come_back_whatever_their_length(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert decode_data_url(data_url(data), LIMITS) == data


def test_white_space_between_the_characters_is_skipped() -> None:
    data = random.Random(1).randbytes(600_000)
    text = base64.encodebytes(data).decode().replace("\n", "\r\n \t")
    assert decode_data_url("data:image/png;base64," + text, LIMITS) == data


@pytest.mark.parametrize("head", ["DATA:image/PNG;BASE64,", "data:;base64,", "data:image/svg;charset=x;base64,"])
async def test_the_media_type_is_not_believed(head: str) -> None:
    assert (await open_one(head + base64.b64encode(plain("JPEG")).decode())).width == 20


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,iVBOR%2Bab", "a character"),
        ("data:image/png;base64,iVB-R_ab", "a character"),
        ("data:image/png;base64,iVBORab", "not a multiple of 4"),
        ("data:image/png;base64,iV==BORabcde", "a character"),
        ("data:image/png;base64,iVBO====", "too much of it"),
        ("data:image/png;base64,é+++", "a character"),
        ("data:image/png;base64,", "it is empty"),
        ("data:image/png,%89PNG", "only base64"),
        ("data:image/png;base64", "no comma"),
        ("data:" + "x" * 999 + ",", "no comma"),
        ("data:text/html;base64,aGVsbG8=", "does not say that it holds an image"),
    ],
)
def test_a_broken_one_says_what_is_wrong(url: str, words: str) -> None:
    assert words in message(url)


def test_text_after_the_padding_is_broken_wherever_the_text_is_divided() -> None:
    padded = "A" * (262_144 - 22 - 2) + "==" + "AAAA" * 90_000
    assert "broken" in message("data:image/png;base64," + padded)
    assert "broken" in message("data:image/png;base64," + "A" * 22 + padded)


def test_a_length_past_the_limit_is_refused_before_decoding() -> None:
    limits = MediaLimits(max_bytes=30_000)
    with pytest.raises(TooLarge, match=r"media\.max_mb"):
        check_data_url(data_url(bytes(40_000)), limits)
    barely = data_url(bytes(30_001))
    check_data_url(barely, limits)
    with pytest.raises(TooLarge, match=r"media\.max_mb"):
        decode_data_url(barely, limits)
    assert len(decode_data_url(data_url(bytes(30_000)), limits)) == 30_000
