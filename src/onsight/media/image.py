"""Encoded bytes become one checked core Image: bounded, upright, without transparency, RGB.

What the viewer sees is what the model sees: EXIF's orientation is applied (PNG, JPEG, WebP, TIFF), every
transparency lies on white, and of an animated or multi-page file the first frame is taken (of an animated PNG, its
still picture).
"""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import asdict
from typing import Any, BinaryIO

# Importing these plugins registers them; with `formats` in `Image.open` no other decoder is ever asked.
from PIL import BmpImagePlugin as BmpImagePlugin
from PIL import GifImagePlugin as GifImagePlugin
from PIL import Image as Pillow
from PIL import ImageChops
from PIL import JpegImagePlugin as JpegImagePlugin
from PIL import PngImagePlugin as PngImagePlugin
from PIL import TiffImagePlugin as TiffImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from onsight.core.errors import InvalidMedia, OutOfMemory
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageOptions
from onsight.media.containers import PictureFile, broken, read_picture_file
from onsight.media.decode_child import DecodeChild
from onsight.media.limits import MediaLimits
from onsight.media.verdict import Refused, Verdict

# Our own cap is held before any decoder is asked, so Pillow's warnings tell nothing new; and as their texts hold a
# hostile file's numbers, the interpreter's list of those already shown would grow with every such file.
warnings.filterwarnings("ignore", module=r"PIL\.")

_log = logging.getLogger(__name__)

_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_DEEP_GREY = ("I;16", "I;16L", "I;16N", "I;16B")
_MODES = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", *_DEEP_GREY))

# Their decoders (zlib, libjpeg-turbo) are the most attacked and best hardened of all, and nearly all pictures are of
# these formats; what the others cost apart is in docs/decisions/0029-strangers-files-are-opened-apart.md.
_HERE = frozenset(("PNG", "JPEG"))
_DECODE_S = 20

# Pixels converted at a time: the memory for conversions stays small, and other threads run in between.
_BAND_PIXELS = 1 << 18


def read_header(data: bytes, limits: MediaLimits) -> PictureFile:
    """Read a picture's header and hold its size against the limits; nothing is decoded. Raises InvalidMedia."""
    file = read_picture_file(data)
    limits.check_size(upright_size(file), "image is")
    return file


def upright_size(file: PictureFile) -> Size:
    """The picture's size (px) once its orientation is applied."""
    return Size(file.size.height, file.size.width) if file.orientation >= 5 else file.size


def decode_image(file: PictureFile, options: ImageOptions, child: DecodeChild) -> Image:
    """Decode a picture whose header passed `read_header`; not for the event loop. Raises InvalidMedia when it cannot
    be, OutOfMemory when the server has no memory left for it, Unavailable.

    All but PNG and JPEG are decoded in `child`.
    """
    size = upright_size(file)
    try:
        if file.format in _HERE:
            bands = io.BytesIO()
            draw_picture(file, bands)
            pixels = bands.getvalue()
        else:
            task = {name: value for name, value in asdict(file).items() if name != "drawing"}
            pixels = child.ask(
                "draw a picture",
                task,
                file.drawing,
                _DECODE_S,
                lambda answer: answer.read(size.width * size.height * 3),
            )
        return Image.of(pixels, size.width, size.height, options)
    except Refused as refused:
        raise _refusal(refused.verdict) from None
    except MemoryError:
        # The file keeps to the limits, so the fault is not its sender's.
        raise OutOfMemory() from None


def draw_sent_picture(task: dict[str, Any], data: bytes, out: BinaryIO) -> None:
    """`draw_picture` of a file that came as `task`, its fields, and `data`, its drawing."""
    draw_picture(PictureFile(**{**task, "size": Size(**task["size"])}, drawing=data), out)


def draw_picture(file: PictureFile, out: BinaryIO) -> None:
    """Write the pixels of the upright picture on white: RGB, 8 bits a channel, row by row. Raises Refused, and
    MemoryError where this process gets no more."""
    try:
        with Pillow.open(io.BytesIO(file.drawing), formats=(file.format,)) as picture:
            _write_rgb(picture, file, out)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes make Pillow raise any class at all, and none is the server's fault
        _log.info("the %s decoder refused a picture: %s", file.format, type(error).__name__)
        raise Refused(Verdict.BROKEN) from None


def _write_rgb(picture: Pillow.Image, file: PictureFile, out: BinaryIO) -> None:
    # The caps were held against our reading of the header; a decoder that reads another size must not get past them.
    if picture.size != (file.size.width, file.size.height):
        raise Refused(Verdict.BROKEN)
    if picture.mode not in _MODES:
        raise Refused(Verdict.STRANGE)
    picture.load()
    if picture.size != (file.size.width, file.size.height):
        raise Refused(Verdict.BROKEN)
    if file.orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[file.orientation])
    width, height = picture.size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        out.write(_on_white(band, file).tobytes())


def _refusal(verdict: Verdict) -> InvalidMedia:
    """The error for a picture that was not decoded."""
    match verdict:
        case Verdict.STRANGE:
            return InvalidMedia(
                "the image's pixels are of a kind that is not read (floating point, 32 bits or Lab);"
                " save it as 8-bit RGB"
            )
        case Verdict.SLOW:
            return InvalidMedia(f"decoding the image takes more than {_DECODE_S} s; save it as PNG or JPEG and resend")
        case Verdict.LARGE:
            return InvalidMedia("decoding the image takes too much memory; save it as PNG or JPEG and resend")
        case _:
            return broken()


def _on_white(band: Pillow.Image, file: PictureFile) -> Pillow.Image:
    """An 8-bit RGB picture of the band, its transparency laid on white."""
    if band.mode in _DEEP_GREY:
        return _deep_grey(band, file.key)
    if band.mode == "P" and "transparency" not in band.info:
        return band.convert("RGB")
    if band.mode in ("LA", "La", "P", "PA", "RGBA", "RGBa"):
        seen = band.convert("RGBA")
        return _masked(seen.convert("RGB"), seen.getchannel("A"))
    rgb = band.convert("RGB")
    if file.key is None:
        return rgb
    return _masked(rgb, _all_but(rgb, _key_samples(file.key, file.depth)))


def _masked(rgb: Pillow.Image, mask: Pillow.Image) -> Pillow.Image:
    white = Pillow.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=mask)
    return white


def _key_samples(key: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """PNG's transparent colour as 8-bit RGB. Of 16-bit RGB the decoder keeps high bytes only, so those are compared."""
    if depth == 16:
        samples = tuple(value >> 8 for value in key)
    else:
        top = (1 << depth) - 1
        samples = tuple((value & top) * 255 // top for value in key)
    return samples * 3 if len(samples) == 1 else samples


def _all_but(rgb: Pillow.Image, colour: tuple[int, ...]) -> Pillow.Image:
    """A mask that is 0 where the picture has exactly this colour and 255 elsewhere."""
    masks = [
        channel.point([0 if value == sample else 255 for value in range(256)])
        for channel, sample in zip(rgb.split(), colour, strict=True)
    ]
    return ImageChops.lighter(ImageChops.lighter(masks[0], masks[1]), masks[2])


def _deep_grey(band: Pillow.Image, key: tuple[int, ...] | None) -> Pillow.Image:
    """16-bit grey scaled to 8 bits by its high byte (Pillow's own conversion clips); a transparent grey turns white."""
    data = band.tobytes()
    high, low = (data[0::2], data[1::2]) if band.mode == "I;16B" else (data[1::2], data[0::2])
    grey = Pillow.frombytes("L", band.size, high)
    if key is None:
        return grey.convert("RGB")
    both = Pillow.merge("RGB", (grey, Pillow.frombytes("L", band.size, low), grey))
    return _masked(grey.convert("RGB"), _all_but(both, (key[0] >> 8, key[0] & 255, key[0] >> 8)))
