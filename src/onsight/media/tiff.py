"""TIFF directories, which are also EXIF's: reads an orientation, and rebuilds a file with only the tags that draw."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from onsight.core.errors import InvalidMedia
from onsight.core.geometry import Size

_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION = 256, 257, 259, 274
_TILE_WIDTH, _TILE_HEIGHT = 322, 323

# Width, height, bits, compression, photometric, fill order, strips, samples per pixel, rows per strip, byte counts,
# planes, fax options, predictor, palette, tiles, ink set, extra samples, sample format, YCbCr.
# fmt: off
_DRAWS = frozenset((
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    529, 530, 531, 532,
))
# fmt: on

# None, three fax codes, LZW, Deflate (two numbers), PackBits. JPEG inside TIFF is left out: its strips may overlap,
# so that a small file asks for a thousand scans.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 8, 32946, 32773))

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MAX_TAGS = 1000
# A tile may overhang the picture, but a decoder holds one whole: no more overhang than this, in px a side.
_MAX_TILE_OVERHANG = 1024


@dataclass(frozen=True, slots=True)
class _Tag:
    """One directory entry: `raw` is its 12 bytes, `value` its first number when that is held in the entry itself."""

    number: int
    raw: bytes
    data_bytes: int
    value: int


def exif_orientation(data: bytes) -> int:
    """EXIF's orientation 1..8 in the bytes of a TIFF directory; 1 when there is none or it makes no sense."""
    try:
        values = [tag.value for tag in _tags(data) if tag.number == _ORIENTATION]
    except (struct.error, InvalidMedia):
        return 1
    return values[0] if values and 1 <= values[0] <= 8 else 1


def reduce_tiff(data: bytes) -> tuple[Size, int, bytes]:
    """The first picture's size (px), its orientation, and a TIFF with nothing but that picture.

    Raises InvalidMedia for a directory that cannot be true, struct.error for one that is cut short.
    """
    tags = {tag.number: tag for tag in _tags(data)}
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise _hostile()
    size = Size(tags[_WIDTH].value, tags[_HEIGHT].value)
    compression = tags[_COMPRESSION].value if _COMPRESSION in tags else 1
    if compression not in _COMPRESSIONS:
        raise InvalidMedia(f"TIFF compression {compression} is not read; save the picture as PNG or JPEG and resend")
    for number, side in ((_TILE_WIDTH, size.width), (_TILE_HEIGHT, size.height)):
        if number in tags and tags[number].value > side + _MAX_TILE_OVERHANG:
            raise _hostile()
    kept = [tags[number] for number in sorted(tags) if number in _DRAWS]
    # Tags do not share their data in an honest file. In a hostile one, each of a thousand tags claims the whole file.
    if sum(tag.data_bytes for tag in kept) > len(data):
        raise _hostile()
    order = _order(data)
    padding = b"\0" * (len(data) % 2)
    head = data[:4] + struct.pack(order + "I", len(data) + len(padding))
    directory = struct.pack(order + "H", len(kept)) + b"".join(tag.raw for tag in kept) + bytes(4)
    orientation = tags[_ORIENTATION].value if _ORIENTATION in tags else 1
    return size, orientation if 1 <= orientation <= 8 else 1, b"".join((head, data[8:], padding, directory))


def _order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"


def _tags(data: bytes) -> Iterator[_Tag]:
    """The entries of the first directory."""
    order = _order(data)
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    if count > _MAX_TAGS:
        raise _hostile()
    for position in range(start + 2, start + 2 + 12 * count, 12):
        number, kind, values = struct.unpack_from(order + "HHI", data, position)
        form = {1: "B", 3: "H", 4: "I"}.get(kind)
        value = struct.unpack_from(order + form, data, position + 8)[0] if form else 0
        data_bytes = _TYPE_BYTES.get(kind, 1) * values
        yield _Tag(number, data[position : position + 12], data_bytes, value)


def _hostile() -> InvalidMedia:
    return InvalidMedia(
        "cannot decode image: its TIFF directory makes no sense; save it again as PNG or JPEG and resend"
    )
