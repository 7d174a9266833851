"""A file that comes again is not decoded again; whatever changes its pixels makes it another picture."""

from __future__ import annotations

import io

from PIL import Image as Pillow

from onsight.core.messages import ImageOptions, ImageRef
from onsight.media.door import MediaDoor, MediaLimits
from tests.media.pictures import BLUE, RED, encoded


def drawn(colour: tuple[int, int, int]) -> bytes:
    return encoded(Pillow.new("RGB", (30, 20), colour))


def jpeg(orientation: int) -> bytes:
    picture, exif, file = Pillow.new("RGB", (40, 20), RED), Pillow.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


async def test_a_picture_that_comes_again_is_the_same_one_with_its_own_options() -> None:
    door, file = MediaDoor(), drawn(RED)
    first, again = await door.open([ImageRef(file)]), await door.open([ImageRef(file, ImageOptions(detail="low"))])
    other = await door.open([ImageRef(drawn(BLUE))])
    door.close()
    assert again[0].pixels is first[0].pixels
    assert (first[0].options.detail, again[0].options.detail) == ("auto", "low")
    assert other[0].pixels != first[0].pixels
    assert (door.decoded.cache.hits, door.decoded.cache.misses, door.decoded.cache.bytes) == (1, 2, 2 * 30 * 20 * 3)


async def test_the_same_strokes_held_another_way_are_another_picture() -> None:
    door = MediaDoor()
    lying, standing = [(await door.open([ImageRef(jpeg(orientation))]))[0] for orientation in (1, 6)]
    door.close()
    assert (lying.width, lying.height, standing.width, standing.height) == (40, 20, 20, 40)


async def test_nothing_is_kept_where_nothing_may_be() -> None:
    door, file = MediaDoor(MediaLimits(decoded_bytes=0)), drawn(RED)
    first, again = await door.open([ImageRef(file)]), await door.open([ImageRef(file)])
    door.close()
    assert first[0] == again[0]
    assert (door.decoded.cache.hits, door.decoded.cache.bytes) == (0, 0)
