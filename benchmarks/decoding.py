"""What it costs to open files apart from the server: each kind decoded here and in the process for strangers' files.

python -m benchmarks.decoding [--runs N]
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import av
import numpy
import psutil
from PIL import Image as Pillow

from benchmarks.report import Cell, Report, Table, publish
from benchmarks.screens import screens
from onsight.core.byte_cache import ByteCache
from onsight.core.frames import FrameRule
from onsight.core.messages import Image, ImageOptions, VideoOptions
from onsight.core.pages import Pages
from onsight.media.decode_child import DecodeChild
from onsight.media.film import draw_film, tell_film
from onsight.media.image import decode_image, draw_picture, read_header, upright_size
from onsight.media.limits import MediaLimits
from onsight.media.pdf import draw_pdf, read_pdf
from onsight.media.pdf_pages import draw_pdf_pages, tell_pdf
from onsight.media.video import decode_clip, read_clip

LIMITS = MediaLimits(max_request_pixels=1_000_000_000, decoded_bytes=0)
SIZES = ((256, 256), (1280, 720), (4000, 3000))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
FILMS = ((640, 360, 10, 8), (1280, 720, 30, 16), (1920, 1080, 60, 32))
"""(width px, height px, seconds, frames looked at)"""
_RATE = 25


@dataclass(frozen=True, slots=True)
class Case:
    """One file, opened `here`, in this process, and `apart`. `megabytes`: of its pixels."""

    name: str
    here: Callable[[], object]
    apart: Callable[[], object]
    megabytes: float


def pictures(child: DecodeChild) -> Iterator[Case]:
    """A photograph-like picture of every format and size."""
    dice = numpy.random.default_rng(1)
    for (width, height), form in itertools.product(SIZES, FORMATS):
        rough = Pillow.fromarray(dice.integers(0, 256, (height // 16, width // 16, 3), numpy.uint8))
        picture = rough.resize((width, height), Pillow.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
        file = read_header(data.getvalue(), LIMITS)

        def here(file=file) -> Image:
            pixels, size = io.BytesIO(), upright_size(file)
            draw_picture(file, pixels)
            return Image.of(pixels.getvalue(), size.width, size.height)

        apart = functools.partial(decode_image, file, ImageOptions(), child)
        yield Case(f"{form} {width}x{height}", here, apart, width * height * 3 / 1e6)


def film(width: int, height: int, seconds: int) -> bytes:
    """An MP4 (H.264) whose picture drifts."""
    buffer = io.BytesIO()
    rough = Pillow.fromarray(numpy.random.default_rng(2).integers(0, 256, (20, 40, 3), numpy.uint8))
    ground = numpy.asarray(rough.resize((width * 2, height), Pillow.Resampling.BICUBIC))
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 50
        for place in range(seconds * _RATE):
            left = place * 2 % width
            seen = numpy.ascontiguousarray(ground[:, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(seen, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def films(child: DecodeChild) -> Iterator[Case]:
    """Videos, of each the frames that a model looks at."""
    for width, height, seconds, frames in FILMS:
        data = film(width, height, seconds)
        rule = FrameRule(frames / seconds, frames, "starts")
        clip = read_clip(data, rule, VideoOptions(), LIMITS, child)
        told = {"format": clip.format, "max_pixels": LIMITS.max_pixels, "decode_s": LIMITS.video_decode_s}
        wanted = {"width": width, "height": height, "picks": clip.picks, "rate": clip.rate}

        def here(data=data, told=told, wanted=wanted) -> bytes:
            tell_film(told, data, io.BytesIO())
            pixels = io.BytesIO()
            draw_film({**told, **wanted}, data, pixels)
            return pixels.getvalue()

        def apart(data=data, rule=rule) -> object:
            return decode_clip(read_clip(data, rule, VideoOptions(), LIMITS, child), LIMITS, child)

        name = f"MP4 {width}x{height}, {seconds} s, {len(clip.picks)} frames"
        yield Case(name, here, apart, clip.pixels * 3 / 1e6)


def papers(child: DecodeChild) -> Iterator[Case]:
    """PDFs of 1 and of 8 pages with a picture each."""
    for pages in (1, 8):
        written = io.BytesIO()
        first, *rest = itertools.islice(screens(), pages)
        first.save(written, "PDF", save_all=True, append_images=rest, resolution=90)
        data = written.getvalue()
        file = read_pdf(data, Pages(), ImageOptions(), LIMITS, child)
        sizes = [(number, size.width, size.height) for number, size in file.pages]

        def here(data=data, sizes=sizes) -> bytes:
            tell_pdf({"spans": [], "most": 32}, data, io.BytesIO())
            pixels = io.BytesIO()
            draw_pdf_pages({"pages": sizes}, data, pixels)
            return pixels.getvalue()

        def apart(data=data) -> object:
            looked = read_pdf(data, Pages(), ImageOptions(), LIMITS, child)
            return draw_pdf(looked, ImageOptions(), LIMITS, ByteCache(0), child)

        yield Case(f"PDF, {pages} pages", here, apart, sum(w * h for _, w, h in sizes) * 3 / 1e6)


def compared(cases: Iterable[Case], runs: int) -> tuple[tuple[Cell, ...], ...]:
    """(file, MB of pixels, ms here, ms as served, ms more, ratio): processor time of a run, of all processes."""
    rows: list[tuple[Cell, ...]] = []
    for case in cases:
        here, apart = (_each_ms(work, runs) for work in (case.here, case.apart))
        rows.append((case.name, case.megabytes, here, apart, apart - here, apart / here))
        print(rows[-1], flush=True)
    return tuple(rows)


def _each_ms(work: Callable[[], object], runs: int) -> float:
    """Processor time of one run in ms: `runs` of them at least, and as many as take half a second together.

    The children's own is counted in hundredths of a second, so one run alone would tell nothing.
    """
    work()
    while True:
        began_s = _spent_s()
        for _ in range(runs):
            work()
        spent_s = _spent_s() - began_s
        if spent_s > 0.5:
            return spent_s / runs * 1000
        runs *= 2


def _spent_s() -> float:
    """Processor time so far of this process, its children and theirs that have ended."""
    children = (child.cpu_times() for child in psutil.Process().children())
    return time.process_time() + sum(sum(times[:4]) for times in children)


def starts(runs: int) -> tuple[tuple[Cell, ...], ...]:
    """(what, ms): the first file of a server's life, and a new Python with pdfium for each look, as it was before."""
    first = []
    small = read_header(_small(), LIMITS)
    for _ in range(runs):
        child = DecodeChild()
        began = time.perf_counter()
        decode_image(small, ImageOptions(), child)
        first.append((time.perf_counter() - began) * 1000)
        child.close()
    fresh = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "import pypdfium2"], check=True, env={})
        fresh.append((time.perf_counter() - began) * 1000)
    return (
        ("the first file, which starts the process", statistics.median(first)),
        ("a new Python with pdfium, which each look at a PDF took before", statistics.median(fresh)),
    )


def _small() -> bytes:
    data = io.BytesIO()
    Pillow.new("RGB", (64, 64)).save(data, "WEBP")
    return data.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    child = DecodeChild()
    columns = ("file", "pixels, MB", "here, ms", "as served, ms", "more, ms", "ratio")
    tables = [
        Table(title, columns, compared(make(child), runs))
        for title, make in (("Pictures", pictures), ("Videos", films), ("PDFs", papers))
    ]
    child.close()
    tables.append(Table("Starts", ("what", "ms"), starts(runs)))
    notes = (
        "Processor time of one run, of all processes together, the mean over at least half a second of them: other work"
        " on the machine does not show. Here: the same decoder in this process. As served: as the media door does it,"
        " PNG and JPEG in the server's process, the rest in a copy of the process for files of strangers, the pixels"
        " handed back through a pipe. The SHA-256 of a picture's pixels is in both; that of a video's file and of a"
        " PDF's file and pages in the second alone.",
        "Of a video and a PDF both looks count, that at the header and that at the frames or pages.",
    )
    publish(Report("decoding", "Opening files apart from the server", (), tuple(tables), notes))


if __name__ == "__main__":
    main()
