"""What pdfium is asked about a PDF, in the process that `decode_process.py` makes for each look at one.

pdfium is written in C++ and reads what strangers made. There it may crash, run on or eat memory without harm to the
server, and its not being safe for threads does not matter. No JavaScript is run (this build of pdfium cannot), no form
filled in and no attachment opened; a form's fields are drawn as they were saved, since every viewer shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypedDict

import pypdfium2
import pypdfium2.raw

from onsight.media.verdict import Refused, Verdict

# That it fails without an error is what it says of a document without pages.
_VERDICTS = {pypdfium2.raw.FPDF_ERR_PASSWORD: Verdict.PASSWORD, pypdfium2.raw.FPDF_ERR_SUCCESS: Verdict.EMPTY}


class TellTask(TypedDict):
    """`spans`: the pages whose sizes are told, all if empty; `most` of them at most."""

    spans: list[tuple[int, int]]
    most: int


class DrawTask(TypedDict):
    """`pages`: (number, width px, height px) each."""

    pages: list[tuple[int, int, int]]


def tell_pdf(task: TellTask, data: bytes, out: BinaryIO) -> None:
    """As JSON, how many pages there are, and the sizes of the wanted ones in points (1/72 inch), as they are shown; 0x0
    of a page that cannot be read."""
    with _opened(data) as document:
        total = len(document)
        spans = task["spans"] or [(1, total)]
        most = task["most"]
        wanted = [number for first, last in spans for number in range(first, min(last, total, first + most) + 1)]
        sizes = [(number, *_size(document, number)) for number in wanted[:most]]
        out.write(json.dumps({"total": total, "sizes": sizes}).encode())


def draw_pdf_pages(task: DrawTask, data: bytes, out: BinaryIO) -> None:
    """For each wanted page a byte 1 and its pixels on white, RGB, 8 bits a channel, row by row; or a byte 0, where it
    cannot be read."""
    with _opened(data) as document:
        document.init_forms()
        for number, width, height in task["pages"]:
            try:
                page = document[number - 1]
            except pypdfium2.PdfiumError:
                out.write(b"\0")
                continue
            bitmap = pypdfium2.PdfBitmap.new_native(width, height, pypdfium2.raw.FPDFBitmap_BGR)
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
            flags = pypdfium2.raw.FPDF_ANNOT | pypdfium2.raw.FPDF_REVERSE_BYTE_ORDER
            pypdfium2.raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
            if document.formenv is not None:
                pypdfium2.raw.FPDF_FFLDraw(document.formenv, bitmap, page, 0, 0, width, height, 0, flags)
            page.close()
            out.write(b"\1")
            out.write(bitmap.buffer)
            bitmap.close()


def _size(document: pypdfium2.PdfDocument, number: int) -> tuple[float, float]:
    try:
        width, height = document.get_page_size(number - 1)
        return width, height
    except pypdfium2.PdfiumError:
        return 0, 0


@contextmanager
def _opened(data: bytes) -> Iterator[pypdfium2.PdfDocument]:
    """The document; it ends with the process. Raises Refused for whatever pdfium finds wrong with it."""
    try:
        yield pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise Refused(_VERDICTS.get(error.err_code, Verdict.BROKEN)) from None
