"""Small picture files, honest and hostile, for the tests of the media door."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image as Pillow

from onsight.core.messages import Image, ImageRef
from onsight.media.door import MediaDoor, MediaLimits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Pillow.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def plain(form: str = "PNG", size: tuple[int, int] = (20, 10)) -> bytes:
    return encoded(Pillow.new("RGB", size, RED), form)


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(header: tuple[int, int, int, int], rows: bytes, *more: bytes) -> bytes:
    """A PNG of (width, height, bit depth, colour type) from filtered rows, with more chunks before its data."""
    parts = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *more]
    parts += [png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF whose directory has these (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


async def open_one(source: bytes | str, limits: MediaLimits | None = None) -> Image:
    door = MediaDoor(limits)
    try:
        (image,) = await door.open([ImageRef(source, param="here")])
        return image
    finally:
        door.close()


def pixel(image: Image, x: int, y: int) -> tuple[int, ...]:
    start = (y * image.width + x) * 3
    return tuple(image.pixels[start : start + 3])
