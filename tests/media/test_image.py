"""What the viewer sees is what the model sees, and hostile files are refused before they cost anything."""

from __future__ import annotations

import functools
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace

import pytest
from PIL import Image as Pillow
from PIL import ImageFile

from onsight.core.errors import InvalidMedia, OutOfMemory
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageOptions
from onsight.media.decode_child import DecodeChild
from onsight.media.image import decode_image, read_header
from onsight.media.limits import MediaLimits
from tests.media.pictures import (
    BLUE,
    FORMATS,
    GREEN,
    RED,
    WHITE,
    encoded,
    open_one,
    pixel,
    plain,
    png,
    png_chunk,
    tiff,
)

LIMITS = MediaLimits()


@functools.cache
def child() -> DecodeChild:
    """One for the whole file; it ends with the test run."""
    return DecodeChild()


def read(data: bytes) -> Image:
    return decode_image(read_header(data, LIMITS), ImageOptions(), child())


def refused(data: bytes) -> str:
    with pytest.raises(InvalidMedia) as caught:
        read(data)
    return caught.value.message


def corners() -> Pillow.Image:
    """Upright: red, green on top; blue, white below; 40 px wide, 20 px high."""
    picture = Pillow.new("RGB", (40, 20), "white")
    picture.paste(RED, (0, 0, 20, 10))
    picture.paste(GREEN, (20, 0, 40, 10))
    picture.paste(BLUE, (0, 10, 20, 20))
    return picture


@pytest.mark.parametrize("form", FORMATS)
def test_every_allowed_format_is_read(form: str) -> None:
    image = read(plain(form))
    assert (image.width, image.height) == (20, 10)
    assert all(abs(a - b) < 6 for a, b in zip(pixel(image, 5, 5), RED, strict=True))


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "PPM", "TGA", "ICO"])
def test_other_formats_are_refused_with_the_list_of_those_that_are_read(form: str) -> None:
    assert "send PNG, JPEG, WebP, GIF, BMP or TIFF" in refused(encoded(Pillow.new("RGB", (32, 32)), form))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores an upright picture this way
    stored = corners()
    if orientation in undo:
        stored = stored.transpose(Pillow.Transpose(undo[orientation]))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = read(encoded(stored, form, exif=exif))
    assert (image.width, image.height) == (40, 20)
    for (x, y), colour in {(8, 5): RED, (32, 5): GREEN, (8, 15): BLUE, (32, 15): WHITE}.items():
        assert all(abs(a - b) < 40 for a, b in zip(pixel(image, x, y), colour, strict=True))


def test_rgba_is_laid_on_white() -> None:
    picture = Pillow.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    for form in ("PNG", "TIFF"):
        image = read(encoded(picture, form))
        assert (pixel(image, 0, 0), pixel(image, 1, 0), pixel(image, 2, 0)) == (WHITE, RED, (127, 127, 127))


def test_grey_with_alpha_is_laid_on_white() -> None:
    image = read(encoded(Pillow.new("LA", (8, 8), (0, 0))))
    assert pixel(image, 0, 0) == WHITE


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(form: str) -> None:
    picture = Pillow.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((3, 0), 1)
    image = read(encoded(picture, form, transparency=0))
    assert (pixel(image, 0, 0), pixel(image, 3, 0)) == (WHITE, RED)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(depth: int) -> None:
    samples = 8  # every row: seven zeros, then the deepest grey value there is
    bits = "0" * depth * (samples - 1) + "1" * depth
    row = b"\0" + int(bits, 2).to_bytes(samples * depth // 8, "big")
    transparent = png_chunk(b"tRNS", struct.pack(">H", 0))
    image = read(png((samples, 8, depth, 0), row * 8, transparent))
    assert (pixel(image, 0, 0), pixel(image, 7, 0)) == (WHITE, WHITE)
    opaque = read(png((samples, 8, depth, 0), row * 8))
    assert (pixel(opaque, 0, 0), pixel(opaque, 7, 0)) == ((0, 0, 0), WHITE)
    top = png_chunk(b"tRNS", struct.pack(">H", (1 << depth) - 1))
    assert pixel(read(png((samples, 8, depth, 0), row * 8, top)), 0, 0) == (0, 0, 0)


@pytest.mark.parametrize(("depth", "row"), [(2, b"\0" + b"\x55" * 2), (4, b"\0" + b"\x11" * 4)])
def test_a_transparent_grey_is_compared_in_the_pictures_own_depth(depth: int, row: bytes) -> None:
    shades = {2: 85, 4: 17}
    assert pixel(read(png((8, 8, depth, 0), row * 8)), 0, 0) == (shades[depth],) * 3
    one = png_chunk(b"tRNS", struct.pack(">H", 1))
    assert pixel(read(png((8, 8, depth, 0), row * 8, one)), 0, 0) == WHITE


def test_a_transparent_rgb_colour_is_white_and_its_neighbours_are_not() -> None:
    row = b"\0" + bytes((10, 20, 30)) + bytes((10, 20, 31)) * 7
    image = read(png((8, 8, 8, 2), row * 8, png_chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))))
    assert (pixel(image, 0, 0), pixel(image, 1, 0)) == (WHITE, (10, 20, 31))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    row = b"\0" + struct.pack(">8H", 0, 256, 0x1234, 0x8000, 0xFFFF, 0, 0, 0)
    image = read(png((8, 8, 16, 0), row * 8))
    assert [pixel(image, x, 3)[0] for x in range(5)] == [0, 1, 0x12, 0x80, 0xFF]
    deep = Pillow.new("I;16", (8, 8), 0x8000)
    assert pixel(read(encoded(deep, "TIFF")), 0, 0) == (0x80, 0x80, 0x80)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused_by_kind(mode: str) -> None:
    assert "of a kind that is not read" in refused(encoded(Pillow.new(mode, (8, 8)), "TIFF"))


def test_a_decoder_that_reads_another_size_than_the_header_is_not_believed() -> None:
    file = replace(read_header(plain(), LIMITS), size=Size(10, 10))
    with pytest.raises(InvalidMedia):
        decode_image(file, ImageOptions(), child())


def test_cmyk_becomes_rgb() -> None:
    image = read(encoded(Pillow.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert pixel(image, 4, 4)[0] > 240
    assert max(pixel(image, 4, 4)[1:]) < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_many_is_taken(form: str) -> None:
    frames = [Pillow.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    image = read(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert pixel(image, 8, 8)[0] > 240
    assert pixel(image, 8, 8)[2] < 15


def test_a_large_picture_keeps_every_row() -> None:
    picture = Pillow.frombytes("RGB", (700, 900), random.Random(1).randbytes(700 * 900 * 3))
    assert read(encoded(picture)).pixels == picture.tobytes()


def test_a_phone_picture_with_another_picture_appended_is_read() -> None:
    assert read(plain("JPEG") + b"\xff\xda" * 400 + plain("JPEG")).width == 20


@pytest.mark.parametrize("form", FORMATS)
def test_metadata_never_reaches_the_decoder(form: str) -> None:
    exif = Pillow.Exif()
    exif[0x010E] = "a secret description"
    options = {} if form in ("GIF", "BMP") else {"exif": exif}
    if form in ("GIF", "JPEG"):
        options["comment"] = b"a secret description"
    data = encoded(Pillow.new("RGB", (16, 16)), form, **options)
    assert form == "BMP" or b"a secret" in data
    file = read_header(data, LIMITS)
    if form != "TIFF":
        assert b"a secret" not in file.drawing


def big_gif() -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)


def big_webp() -> bytes:
    small = plain("WEBP")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(small) + 10) + b"WEBP" + extended + small[12:]


def square_tiff(side: int, *more: tuple[int, int, int, int]) -> bytes:
    strips = [(273, 4, 1, 8), (278, 4, 1, side), (279, 4, 1, 4)]
    shape = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    return tiff([*shape, *strips, *more], zlib.compress(bytes(64)))


def png_of_zeros(side: int) -> bytes:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(side)) + packer.flush()
    parts = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), png_chunk(b"IDAT", rows)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def test_a_small_file_of_400_megapixels_is_refused_from_its_header() -> None:
    bomb = png_of_zeros(20_000)
    assert len(bomb) < 60_000
    assert refused(bomb) == "image is 20000x20000 px; the limit is 40 Mpx (media.max_pixels)"


@pytest.mark.parametrize("bomb", [big_gif(), big_webp(), square_tiff(60_000)], ids=["gif", "webp", "tiff"])
def test_bombs_of_other_formats_are_refused_from_their_headers(bomb: bytes) -> None:
    assert "the limit is 40 Mpx" in refused(bomb)


def test_a_tiff_whose_tags_all_claim_the_whole_file_is_refused() -> None:
    many = [(338, 7, 900_000, 0), (339, 7, 900_000, 0)]
    assert "makes no sense" in refused(square_tiff(16, *many) + bytes(1_000_000))
    assert "makes no sense" in refused(square_tiff(16, (322, 4, 1, 1 << 20), (323, 4, 1, 1 << 11)))


def test_a_jpeg_with_a_thousand_scans_is_refused() -> None:
    data = encoded(corners(), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    assert "scans" in refused(data[:-2] + data[start:-2] * 1000 + data[-2:])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 3)])
def test_tiny_sides_are_a_clear_refusal(size: tuple[int, int]) -> None:
    assert refused(plain("PNG", size)) == (f"image is {size[0]}x{size[1]} px; each side needs at least 4 px")


def test_an_extreme_aspect_is_a_clear_refusal() -> None:
    assert "the longer side may be at most 200 times the shorter" in refused(plain("PNG", (4, 5000)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.7, 0.97])
def test_a_cut_file_is_refused_without_a_name_of_ours(form: str, share: float) -> None:
    noise = Pillow.frombytes("RGB", (64, 64), random.Random(2).randbytes(64 * 64 * 3))
    data = encoded(noise, form)
    message = refused(data[: int(len(data) * share)])
    for word in ("PIL", "Pillow", "/", "0x", "Error", "libjpeg"):
        assert word not in message
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_give_a_picture_or_our_refusal_and_nothing_else(form: str) -> None:
    dice = random.Random(form)
    noise = Pillow.frombytes("RGB", (48, 40), dice.randbytes(48 * 40 * 3))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    data = encoded(noise, form, **options)
    for _ in range(300):
        damaged = bytearray(data[: dice.choice((len(data), len(data), dice.randrange(len(data))))] or b"\0")
        for _ in range(dice.choice((1, 1, 4, 30))):
            # Headers are short: half of the damage is aimed at them.
            place = dice.randrange(dice.choice((min(120, len(damaged)), len(damaged))))
            damaged[place] = dice.randrange(256)
        try:
            image = read(bytes(damaged))
        except InvalidMedia:
            continue
        assert len(image.pixels) == image.width * image.height * 3


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF....WEBP", b"hello" * 9])
def test_scraps_are_refused(data: bytes) -> None:
    assert refused(data)


async def test_a_refusal_says_which_reference_was_at_fault() -> None:
    with pytest.raises(InvalidMedia) as caught:
        await open_one(b"hello")
    assert caught.value.param == "here"


def test_bombs_cost_no_memory(tmp_path) -> None:
    bombs = {"a.png": png_of_zeros(20_000), "b.gif": big_gif(), "c.webp": big_webp(), "d.tif": square_tiff(60_000)}
    bombs["e.tif"] = tiff([(n, 7, 15_000_000, 0) for n in range(1000, 1900)]) + bytes(15_000_000)
    exif_bomb = tiff([(n, 7, 3_000_000, 0) for n in range(1, 900)]) + bytes(3_000_000)
    bombs["f.png"] = png((8, 8, 8, 2), (b"\0" + bytes(24)) * 8, png_chunk(b"eXIf", exif_bomb))
    text_bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000)))
    bombs["g.png"] = png((8, 8, 8, 2), (b"\0" + bytes(24)) * 8, text_bomb * 4)
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = """
        import pathlib, resource, sys
        from onsight.core.errors import InvalidMedia, OutOfMemory
        from onsight.core.messages import ImageOptions
        from onsight.media.decode_child import DecodeChild
        from onsight.media.image import decode_image, read_header
        from onsight.media.limits import MediaLimits
        child = DecodeChild()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            try:
                decode_image(read_header(path.read_bytes(), MediaLimits()), ImageOptions(), child)
            except InvalidMedia:
                pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100  # MiB


def test_a_picture_for_which_the_server_has_no_memory_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    file = read_header(plain(), LIMITS)
    monkeypatch.setattr("onsight.media.image._write_rgb", full)
    with pytest.raises(OutOfMemory):
        decode_image(file, ImageOptions(), child())
