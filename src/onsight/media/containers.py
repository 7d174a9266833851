"""Reads a picture file's header, and reduces the file to what draws its first frame, before any decoder sees it.

Metadata (EXIF, text, colour profiles, later frames, appended video) never reaches the decoder: it cannot change
what is seen, and it is where hostile files hide their weight. The one thing kept from it is the EXIF orientation.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from onsight.core.errors import InvalidMedia
from onsight.core.geometry import Size
from onsight.media.tiff import exif_orientation, reduce_tiff

Format = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DRAWS = (b"PLTE", b"IDAT", b"IEND")
_PNG_PALETTE = 3
_MAX_CHUNKS = 100_000

_JPEG_DRAWS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE))  # tables, restarts, JFIF, Adobe's colour transform
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
# Each scan of a progressive JPEG walks the whole picture again, however few bytes it has. Encoders write about ten.
_MAX_SCANS = 50


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file whose header has been read.

    `size`: px as stored, before `orientation` (EXIF's 1..8). `drawing`: the file without anything that does not
    draw its first frame. `key`: PNG's one transparent colour in samples of `depth` bits, one number for grey and
    three for RGB.
    """

    format: Format
    size: Size
    drawing: bytes
    orientation: int = 1
    key: tuple[int, ...] | None = None
    depth: int = 8


def read_picture_file(data: bytes) -> PictureFile:
    """Read a PNG, JPEG, WEBP, GIF, BMP or TIFF file's header. Raises InvalidMedia for anything else or a broken one."""
    try:
        if data.startswith(_PNG_SIGNATURE):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _read_gif(data)
        if data.startswith(b"BM"):
            return _read_bmp(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            size, orientation, drawing = reduce_tiff(data)
            return PictureFile("TIFF", size, drawing, orientation)
    except (struct.error, IndexError):
        raise broken() from None
    raise InvalidMedia("this is not a picture that can be read; send PNG, JPEG, WebP, GIF, BMP or TIFF")


def broken() -> InvalidMedia:
    """The one answer to a picture that is cut short or damaged."""
    return InvalidMedia(
        "cannot decode image: the file is damaged or cut short; save it again as PNG or JPEG and resend"
    )


def _read_png(data: bytes) -> PictureFile:
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise broken()
    view = memoryview(data)
    kept: list[memoryview] = [view[:33]]
    key: tuple[int, ...] | None = None
    orientation = 1
    for kind, start, end in _png_chunks(data):
        if kind in _PNG_DRAWS or (kind == b"tRNS" and colour == _PNG_PALETTE):
            kept.append(view[start:end])
        elif kind == b"tRNS":
            key = struct.unpack_from(">H" if colour == 0 else ">HHH", data, start + 8)
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
    return PictureFile("PNG", Size(width, height), b"".join(kept), orientation, key, depth)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk after IHDR; the last one may reach past the end of the data."""
    position = 33
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise broken()


def _read_jpeg(data: bytes) -> PictureFile:
    view = memoryview(data)
    kept: list[memoryview] = [view[:2]]
    size: Size | None = None
    orientation = 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            kept.append(view[start : _jpeg_end(data, end)])
            break
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, start + 5)
            size = Size(width, height)
        if marker in _JPEG_SIZES or marker in _JPEG_DRAWS:
            kept.append(view[start:end])
        elif marker == 0xE1 and not orientation and data.startswith(b"Exif\0\0", start + 4):
            orientation = exif_orientation(data[start + 10 : end])
    if size is None:
        raise broken()
    return PictureFile("JPEG", size, b"".join(kept), orientation or 1)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the first scan's; bytes between them are skipped, as libjpeg does."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise broken()
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _JPEG_BARE:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if length < 2 or marker == 0xD9:
                raise broken()
            yield marker, position, position + 2 + length
            position += 2 + length


def _jpeg_end(data: bytes, position: int) -> int:
    """Where the picture ends, from the first scan's data on; phones append more pictures and video behind it."""
    scans = 1
    while found := _JPEG_MARKER.search(data, position):
        start, marker = found.start(), data[found.start() + 1]
        if marker == 0xD9:
            return start + 2
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise InvalidMedia(f"the JPEG has more than {_MAX_SCANS} scans; save it again as a plain JPEG and resend")
        (length,) = struct.unpack_from(">H", data, start + 2)
        position = start + 2 + max(length, 2)
    return len(data)


def _read_webp(data: bytes) -> PictureFile:
    kept: list[bytes] = []
    size: Size | None = None
    orientation = 1
    drawn = False
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        if not drawn and kind in (b"VP8X", b"ANIM", b"ALPH", b"VP8 ", b"VP8L", b"ANMF"):
            if size is None:
                size = _webp_size(data, position, kind)
            chunk = data[position:end]
            if kind == b"VP8X":  # its flags promise the metadata that is left out here
                chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]
            kept.append(chunk)
            drawn = kind in (b"VP8 ", b"VP8L", b"ANMF")
        elif kind == b"EXIF":
            orientation = exif_orientation(data[position + 8 : end].removeprefix(b"Exif\0\0"))
        position = end
    if size is None or not drawn:
        raise broken()
    body = b"".join(kept)
    return PictureFile("WEBP", size, b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, orientation)


def _webp_size(data: bytes, chunk: int, kind: bytes) -> Size:
    """The canvas, from the first chunk that draws. Source: RFC 9649, sections 2.5 to 2.7."""
    body = chunk + 8
    if kind == b"VP8X":
        return Size(
            int.from_bytes(data[body + 4 : body + 7], "little") + 1,
            int.from_bytes(data[body + 7 : body + 10], "little") + 1,
        )
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, body + 6)
        return Size(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, body + 1)
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    raise broken()


def _read_gif(data: bytes) -> PictureFile:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head = data[:position]
    control = b""
    for _ in range(_MAX_CHUNKS):
        if data[position] == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            # A first frame that reaches past the canvas widens it, in browsers and in the decoder.
            size = Size(max(width, left + frame_width), max(height, top + frame_height))
            return PictureFile("GIF", size, head + control + data[position:])
        if data[position] != 0x21:
            break
        end = _gif_extension_end(data, position)
        if data[position + 1] == 0xF9:
            control = data[position:end]
        position = end
    raise broken()


def _gif_extension_end(data: bytes, position: int) -> int:
    position += 2
    for _ in range(_MAX_CHUNKS):
        if data[position] == 0:
            return position + 1
        position += data[position] + 1
    raise broken()


def _read_bmp(data: bytes) -> PictureFile:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return PictureFile("BMP", Size(width, abs(height)), data)
