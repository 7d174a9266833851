"""A PDF becomes one checked core Image a page: the pages that are asked for, upright, on white, within the limits.

pdfium draws them (`pdf_pages.py`), in a process of its own for each look at a file: it is not safe for threads, and
there the operating system bounds its time and memory, and a crash is one refused file.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from typing import IO

from onsight.core.byte_cache import ByteCache
from onsight.core.errors import InvalidMedia
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageOptions
from onsight.core.pages import Pages
from onsight.media.decode_child import MEMORY_BYTES, DecodeChild
from onsight.media.limits import MediaLimits
from onsight.media.verdict import Refused, Verdict

_HEADER_BYTES = 1024
_BLANKS = b"\0\t\n\f\r \xef\xbb\xbf"
"""What may stand before a PDF's mark: white space, and what some editors put before every text."""
_POINTS_PER_INCH = 72
_MOST_POINTS = 14_400


@dataclass(frozen=True, slots=True)
class BadPage:
    """Why page `number` (from 1) of a PDF is no picture; others of it may be."""

    number: int
    error: InvalidMedia


@dataclass(frozen=True, slots=True)
class PdfFile:
    """A PDF that was looked at. `pages`: (number, size in px that it will be drawn at) of those asked for, or what is
    wrong with them.

    `digest`: SHA-256 (hex) of the file.
    """

    data: bytes
    pages: tuple[tuple[int, Size] | BadPage, ...]
    digest: str

    @property
    def good(self) -> tuple[tuple[int, Size], ...]:
        """The pages that can be drawn, as far as their sizes say."""
        return tuple(page for page in self.pages if not isinstance(page, BadPage))


def is_pdf(data: bytes) -> bool:
    """Whether `data` begins like a PDF."""
    return data[:_HEADER_BYTES].lstrip(_BLANKS).startswith(b"%PDF-")


def count_pages(data: bytes, limits: MediaLimits, child: DecodeChild) -> int:
    """How many pages a PDF has; none is drawn. Not for the event loop. Raises InvalidMedia when it cannot be read."""
    try:
        return int(child.facts("tell a pdf", {"spans": (), "most": 0}, data, limits.pdf_draw_s)["total"])
    except Refused as refused:
        raise _refusal(refused.verdict, limits) from None


def read_pdf(data: bytes, pages: Pages, options: ImageOptions, limits: MediaLimits, child: DecodeChild) -> PdfFile:
    """Look how many pages there are and how large those that are asked for; none is drawn. Not for the event loop.

    Raises InvalidMedia for a file that cannot be read, or of which too much is asked, InvalidRequest for a page that it
    lacks.
    """
    task = {"spans": pages.spans, "most": limits.max_images}
    try:
        facts = child.facts("tell a pdf", task, data, limits.pdf_draw_s)
    except Refused as refused:
        raise _refusal(refused.verdict, limits) from None
    wanted = pages.pick(facts["total"])
    if not wanted:
        raise _refusal(Verdict.EMPTY, limits)
    if len(wanted) > limits.max_images:
        raise InvalidMedia(
            f"the PDF has {len(wanted)} pages to look at; the limit is {limits.max_images} in a request"
            " (media.max_images): ask for fewer with pages, like 1-3"
        )
    share = limits.max_request_pixels // len(wanted)
    most = min(share, limits.max_pixels, options.max_pixels or share)
    looked = {number: _look(number, width, height, most, limits) for number, width, height in facts["sizes"]}
    return PdfFile(data, tuple(looked[number] for number in wanted), hashlib.sha256(data).hexdigest())


def draw_pdf(
    file: PdfFile,
    options: ImageOptions,
    limits: MediaLimits,
    cache: ByteCache[Image],
    child: DecodeChild,
    by_page: bool,
) -> tuple[Image | BadPage, ...]:
    """The pages' pictures, in the order asked for; what `cache` holds is not drawn again. Not for the event loop.

    A page that breaks the decoder, or the first that is not drawn within `pdf_draw_s`, is a BadPage and takes those
    after it along; `by_page`: these are tried without it, while the time allows.
    """
    keys = {number: f"{file.digest} {number} {size}" for number, size in file.good}
    drawn: dict[int, Image | BadPage] = {
        number: known for number, key in keys.items() if (known := cache.find(key)) is not None
    }
    missing = [(number, size) for number, size in file.good if number not in drawn]

    def read(answer: IO[bytes]) -> None:
        for number, size in missing:
            if answer.read(1) == b"\0":
                drawn[number] = BadPage(number, _damaged(number))
                continue
            pixels = answer.read(size.width * size.height * 3)
            # Less came when the file was refused, which is known when the answer has ended.
            if len(pixels) == size.width * size.height * 3:
                image = drawn[number] = replace(Image.of(pixels, size.width, size.height), page=number)
                cache.keep(keys[number], image, len(pixels))

    began_s = time.monotonic()
    while missing:
        task = {"pages": [(number, size.width, size.height) for number, size in missing]}
        try:
            child.ask("draw a pdf", task, file.data, limits.pdf_draw_s, read)
            break
        except Refused as refused:
            missing = [(number, size) for number, size in missing if number not in drawn]
            late = refused.verdict is Verdict.SLOW or time.monotonic() - began_s > limits.pdf_draw_s
            culprits = missing[:1] if by_page and not late else missing
            for number, _ in culprits:
                broken = by_page and refused.verdict is Verdict.BROKEN
                drawn[number] = BadPage(number, _damaged(number) if broken else _refusal(refused.verdict, limits))
            missing = missing[len(culprits) :]
    return tuple(page if isinstance(page, BadPage) else _shown(drawn[page[0]], options) for page in file.pages)


def _shown(page: Image | BadPage, options: ImageOptions) -> Image | BadPage:
    return page if isinstance(page, BadPage) else replace(page, options=options)


def _look(number: int, width: float, height: float, most: int, limits: MediaLimits) -> tuple[int, Size] | BadPage:
    try:
        return number, _drawn_size(number, width, height, most, limits)
    except InvalidMedia as error:
        return BadPage(number, error)


def _drawn_size(number: int, width: float, height: float, most: int, limits: MediaLimits) -> Size:
    """The px of a page of that size in points: at the usual resolution, or at the finest one of `most` px."""
    if not width and not height:
        raise _damaged(number)
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


def _damaged(number: int) -> InvalidMedia:
    return InvalidMedia(f"cannot decode page {number} of the PDF: it is damaged; save the file again and resend")


def _refusal(verdict: Verdict, limits: MediaLimits) -> InvalidMedia:
    """The error for a PDF that was not opened."""
    match verdict:
        case Verdict.PASSWORD:
            return InvalidMedia("the PDF is encrypted and needs a password; save it without one and resend")
        case Verdict.EMPTY:
            return InvalidMedia("the PDF has no pages")
        case Verdict.SLOW:
            return InvalidMedia(
                f"opening the PDF takes more than {limits.pdf_draw_s:g} s (media.pdf_draw_s); ask for fewer pages, or"
                " send a simpler one"
            )
        case Verdict.LARGE:
            return InvalidMedia(
                f"opening the PDF takes more than {MEMORY_BYTES >> 20} MB of memory; ask for fewer pages"
            )
        case _:
            return InvalidMedia("cannot decode PDF: the file is damaged or cut short; save it again and resend")
