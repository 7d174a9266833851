"""A PDF becomes one checked core Image a page: the pages that are asked for, upright, on white, within the limits.

pdfium draws them, in a process of its own for each look at a file (`pdf_child.py`): it is not safe for threads, and
there the operating system bounds its time and memory, and a crash is one refused file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

from onsight.core.byte_cache import ByteCache
from onsight.core.errors import InvalidMedia
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageOptions
from onsight.core.pages import Pages
from onsight.media.limits import MediaLimits

_log = logging.getLogger(__name__)

_HEADER_BYTES = 1024
_BLANKS = b"\0\t\n\f\r \xef\xbb\xbf"
"""What may stand before a PDF's mark: white space, and what some editors put before every text."""
_POINTS_PER_INCH = 72
_MOST_POINTS = 14_400
_MEMORY_BYTES = 2 << 30
_WAIT_TIMES = 10
"""A child that waits for a busy machine's processors gets so many times its processor time by the clock."""

_CHILD = Path(__file__).with_name("pdf_child.py")
_BROKEN, _PASSWORD, _EMPTY = 3, 4, 5
_OUT_OF_TIME = (-signal.SIGKILL, -signal.SIGXCPU)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PdfFile:
    """A PDF that was looked at. `pages`: (number, size in px that it will be drawn at) of those asked for.

    `digest`: SHA-256 (hex) of the file.
    """

    data: bytes
    pages: tuple[tuple[int, Size], ...]
    digest: str


def is_pdf(data: bytes) -> bool:
    """Whether `data` begins like a PDF."""
    return data[:_HEADER_BYTES].lstrip(_BLANKS).startswith(b"%PDF-")


def count_pages(data: bytes, limits: MediaLimits) -> int:
    """How many pages a PDF has; none is drawn. Not for the event loop. Raises InvalidMedia when it cannot be read."""
    return int(json.loads(_ask_child(data, limits, lambda answer: answer.read()))["total"])


def read_pdf(data: bytes, pages: Pages, options: ImageOptions, limits: MediaLimits) -> PdfFile:
    """Look how many pages there are and how large those that are asked for; none is drawn. Not for the event loop.

    Raises InvalidMedia for a file that cannot be read or is not allowed, InvalidRequest for a page that it lacks.
    """
    told = _ask_child(data, limits, lambda answer: answer.read(), spans=pages.spans, most=limits.max_images)
    facts = json.loads(told)
    wanted = pages.pick(facts["total"])
    if not wanted:
        raise _refusal(_EMPTY, limits)
    if len(wanted) > limits.max_images:
        raise InvalidMedia(
            f"the PDF has {len(wanted)} pages to look at; the limit is {limits.max_images} in a request"
            " (media.max_images): ask for fewer with pages, like 1-3"
        )
    share = limits.max_request_pixels // len(wanted)
    most = min(share, limits.max_pixels, options.max_pixels or share)
    sizes = {number: _drawn_size(number, width, height, most, limits) for number, width, height in facts["sizes"]}
    return PdfFile(data, tuple((number, sizes[number]) for number in wanted), hashlib.sha256(data).hexdigest())


def draw_pdf(file: PdfFile, options: ImageOptions, limits: MediaLimits, cache: ByteCache[Image]) -> tuple[Image, ...]:
    """The pages' pictures, in the order asked for; what `cache` holds is not drawn again. Not for the event loop.

    Raises InvalidMedia when a page cannot be drawn, or all of them not within `pdf_draw_s`.
    """
    keys = {number: f"{file.digest} {number} {size}" for number, size in file.pages}
    drawn = {number: known for number, key in keys.items() if (known := cache.find(key)) is not None}
    missing = [(number, size) for number, size in file.pages if number not in drawn]

    def read(answer: IO[bytes]) -> None:
        for number, size in missing:
            pixels = answer.read(size.width * size.height * 3)
            # Less came when the child failed, which its exit code says.
            if len(pixels) == size.width * size.height * 3:
                drawn[number] = replace(Image.of(pixels, size.width, size.height), page=number)
                cache.keep(keys[number], drawn[number], len(pixels))

    if missing:
        _ask_child(file.data, limits, read, draw=[(number, size.width, size.height) for number, size in missing])
    return tuple(replace(drawn[number], options=options) for number in keys)


def _drawn_size(number: int, width: float, height: float, most: int, limits: MediaLimits) -> Size:
    """The px of a page of that size in points: at the usual resolution, or at the finest one of `most` px."""
    for side in (width, height):
        # Said of what is no number, too.
        if not 0 < side <= _MOST_POINTS:
            raise InvalidMedia(
                f"page {number} of the PDF is {width:g}x{height:g} points (1/72 inch);"
                f" the limit is {_MOST_POINTS} a side"
            )
    scale = min(limits.pdf_dpi / _POINTS_PER_INCH, math.sqrt(most / (width * height)))
    size = Size(max(1, int(width * scale)), max(1, int(height * scale)))
    limits.check_size(size, f"page {number} of the PDF is")
    return size


def _ask_child(data: bytes, limits: MediaLimits, read: Callable[[IO[bytes]], T], **wanted: object) -> T:
    """What `read` makes of the child's answer about `data`. Raises InvalidMedia when the child could not open it."""
    cpu_s = math.ceil(limits.pdf_draw_s)
    task = {"cpu_s": cpu_s, "memory_bytes": _MEMORY_BYTES, "spans": (), "most": 0, "draw": (), **wanted}
    # No environment: the server's key may stand in it. "-I" keeps modules of the working directory out.
    command = [sys.executable, "-I", str(_CHILD)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={}) as process:
        late = threading.Timer(cpu_s * _WAIT_TIMES, process.kill)
        late.start()
        try:
            with suppress(BrokenPipeError), _pipe(process.stdin) as child:
                child.write(json.dumps(task).encode() + b"\n")
                child.write(data)
            answer = read(_pipe(process.stdout))
            code = process.wait()
        finally:
            late.cancel()
            process.kill()
    if code:
        raise _refusal(code, limits)
    return answer


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the child has no pipe")
    return pipe


def _refusal(code: int, limits: MediaLimits) -> InvalidMedia:
    """The error for a child that ended with `code`."""
    if code == _PASSWORD:
        return InvalidMedia("the PDF is encrypted and needs a password; save it without one and resend")
    if code == _EMPTY:
        return InvalidMedia("the PDF has no pages")
    if code in _OUT_OF_TIME:
        return InvalidMedia(
            f"opening the PDF takes more than {limits.pdf_draw_s:g} s (media.pdf_draw_s); ask for fewer pages, or send"
            " a simpler one"
        )
    if code == _BROKEN or code < 0:
        _log.info("pdfium refused a PDF: exit code %d", code)
        return InvalidMedia("cannot decode PDF: the file is damaged or cut short; save it again and resend")
    raise RuntimeError(f"the process that opens PDFs ended with code {code}")
