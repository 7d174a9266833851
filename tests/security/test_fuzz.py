"""What fuzzing found stays found: the kept files and texts are shown to the door and to the streams again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from onsight.core.errors import InvalidMedia
from onsight.media.door import MediaDoor
from tests.api.conftest import CARD
from tests.api.test_tasks import pair, square
from tests.media.pictures import plain
from tests.security.fuzz import CORPUS, LIMITS, Sayer, events_in, fuzz, say, show, whole_files
from tests.security.streams import post_to


@pytest.fixture(scope="module")
def door() -> Iterator[MediaDoor]:
    door = MediaDoor(LIMITS)
    yield door
    door.close()


async def test_every_kept_file_is_opened_or_clearly_refused(door: MediaDoor) -> None:
    files = sorted((CORPUS / "media").iterdir())
    assert len(files) > 20
    for file in files:
        assert await show(door, file.read_bytes()), file.name


async def test_every_kept_text_is_read_as_it_was_said() -> None:
    files = sorted((CORPUS / "streams").iterdir())
    assert len(files) > 3
    engine = Sayer("0..1000", square, pair)
    with post_to(engine, CARD) as post:
        for file in files:
            assert await say(post, engine, json.loads(file.read_bytes())), file.name


async def test_every_whole_file_is_opened(door: MediaDoor) -> None:
    for name, data in whole_files().items():
        assert "cannot" not in await show(door, data), name


async def test_a_result_that_is_not_whole_and_a_word_of_ours_are_noticed(door: MediaDoor) -> None:
    class Half(MediaDoor):
        async def open_pages(self, refs: object) -> object:
            raise InvalidMedia("PIL.UnidentifiedImageError at 0x7f0000000000")

    with pytest.raises(AssertionError):
        await show(Half(), plain())


@pytest.mark.parametrize("stream", ["data: x", "dta: x\n\n", "data: x\n\nid: 3\n\n"])
def test_a_stream_that_is_none_is_noticed(stream: str) -> None:
    with pytest.raises(AssertionError):
        events_in(stream)


def test_what_breaks_is_made_small_and_told() -> None:
    def check(data: bytes) -> str:
        if b"!" in data:
            raise ValueError("found it")
        return "fine"

    tally = fuzz(st.binary(max_size=50), check, 0.01)
    assert set(tally.outcomes) == {"fine"}
    assert tally.broken == {"ValueError: found it": b"!"}
