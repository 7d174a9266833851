"""Tells a video file by its header, and reads a GIF's timing, before any decoder sees the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from onsight.core.errors import InvalidMedia
from onsight.core.geometry import Size

VideoFormat = Literal["MP4", "WEBM", "GIF"]
"""MOV is MP4's elder brother and is read as such."""

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
# Pictures that come in MP4's container; a video decoder would show one of their tiles.
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
_EBML = b"\x1a\x45\xdf\xa3"
_DOCTYPE = b"\x42\x82"
_HEADER_BYTES = 128
_MAX_GIF_BLOCKS = 100_000
_LEAST_DELAY_S = 0.02
_UNSAID_DELAY_S = 0.1


@dataclass(frozen=True, slots=True)
class GifTiming:
    """A GIF's canvas (px), and how long each of its frames is shown (s)."""

    size: Size
    delays_s: tuple[float, ...]


def video_format(data: bytes) -> VideoFormat | None:
    """What kind of video file `data` begins like; None when it is none that is read."""
    if data[4:8] in _MP4_BOXES:
        return None if data[4:8] == b"ftyp" and data[8:12] in _PICTURE_BRANDS else "MP4"
    if data.startswith(_EBML):
        return "WEBM" if _doctype(data[:_HEADER_BYTES]) == b"webm" else None
    return "GIF" if data.startswith((b"GIF87a", b"GIF89a")) else None


def broken() -> InvalidMedia:
    """The one answer to a video that is cut short or damaged."""
    return InvalidMedia(
        "cannot decode video: the file is damaged or cut short; save it again as MP4 (H.264) and resend"
    )


def _doctype(header: bytes) -> bytes:
    """Matroska's name for what follows. A length's first byte tells by its leading zeros how many bytes it has."""
    place = header.find(_DOCTYPE) + len(_DOCTYPE)
    if place < len(_DOCTYPE) or place >= len(header) or not header[place]:
        return b""
    size = 9 - header[place].bit_length()
    length = int.from_bytes(header[place : place + size], "big") & ((1 << 7 * size) - 1)
    return header[place + size : place + size + length].rstrip(b"\0")


def read_gif_timing(data: bytes) -> GifTiming:
    """Walk a GIF's blocks without decoding any. Raises InvalidMedia for a broken one, or one without frames."""
    try:
        return _gif_timing(data)
    except (struct.error, IndexError):
        raise broken() from None


def _gif_timing(data: bytes) -> GifTiming:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _table_bytes(flags)
    delays: list[float] = []
    delay_s = _UNSAID_DELAY_S
    for _ in range(_MAX_GIF_BLOCKS):
        match data[position]:
            case 0x2C:
                left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
                right, bottom = left + frame_width, top + frame_height
                # A first frame that reaches past the canvas widens it; a later one is what no encoder writes.
                if delays and (right > width or bottom > height):
                    raise broken()
                width, height = max(width, right), max(height, bottom)
                delays.append(delay_s)
                delay_s = _UNSAID_DELAY_S
                position = _blocks_end(data, position + 11 + _table_bytes(flags))
            case 0x21:
                if data[position + 1] == 0xF9:
                    (hundredths,) = struct.unpack_from("<H", data, position + 4)
                    # As browsers do: what asks for no pause, or one too short to see, gets the usual one.
                    delay_s = hundredths / 100 if hundredths / 100 >= _LEAST_DELAY_S else _UNSAID_DELAY_S
                position = _blocks_end(data, position + 2)
            case 0x3B:
                break
            case _:
                raise broken()
    else:
        raise InvalidMedia(f"the GIF has more than {_MAX_GIF_BLOCKS} blocks; send it as MP4")
    if not delays:
        raise InvalidMedia("the video has no frames")
    return GifTiming(Size(width, height), tuple(delays))


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks_end(data: bytes, position: int) -> int:
    """Where a run of sub-blocks ends, each with its length before it."""
    while data[position]:
        position += data[position] + 1
    return position + 1
