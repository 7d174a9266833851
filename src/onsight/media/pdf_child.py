"""Opens one PDF with pdfium, in a process of its own; run as a script by `onsight.media.pdf`, never imported.

Standard input: a line of JSON (`Task` below), then the file. Standard output: JSON that tells sizes, or the pixels of
pages, one after another, RGB, 8 bits a channel, row by row. Exit code: 0, or one of `FAILURES` below.

pdfium is written in C++ and reads what strangers made. Here it may crash, run on or eat memory without harm to the
server, and its not being safe for threads does not matter. No JavaScript is run (this build of pdfium cannot), no form
filled in and no attachment opened; a form's fields are drawn as they were saved, since every viewer shows them.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import BinaryIO, TypedDict

import pypdfium2
import pypdfium2.raw

BROKEN = 3
FAILURES = {pypdfium2.raw.FPDF_ERR_PASSWORD: 4, pypdfium2.raw.FPDF_ERR_SUCCESS: 5}
"""pdfium's error -> exit code. That it fails without an error is what it says of a document without pages."""


class Task(TypedDict):
    """`cpu_s`, `memory_bytes`: the most that this process may take. `spans`: the pages whose sizes are told, `most` of
    them at most. `draw`: the pages to draw, (number, width px, height px) each; empty only tells sizes."""

    cpu_s: int
    memory_bytes: int
    spans: list[tuple[int, int]]
    most: int
    draw: list[tuple[int, int, int]]


def bound(task: Task) -> None:
    """Have the operating system hold this process to its limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (task["cpu_s"], task["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses to bound a process's addresses.
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"], task["memory_bytes"]))


def tell(document: pypdfium2.PdfDocument, task: Task, out: BinaryIO) -> None:
    """How many pages there are, and how large the wanted ones are, in points (1/72 inch), as they are shown."""
    total = len(document)
    spans = task["spans"] or [(1, total)]
    wanted = [number for first, last in spans for number in range(first, min(last, total, first + task["most"]) + 1)]
    sizes = [(number, *document.get_page_size(number - 1)) for number in wanted[: task["most"]]]
    out.write(json.dumps({"total": total, "sizes": sizes}).encode())


def draw(document: pypdfium2.PdfDocument, task: Task, out: BinaryIO) -> None:
    """The pixels of the wanted pages on white."""
    document.init_forms()
    for number, width, height in task["draw"]:
        bitmap = pypdfium2.PdfBitmap.new_native(width, height, pypdfium2.raw.FPDFBitmap_BGR)
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        page = document[number - 1]
        flags = pypdfium2.raw.FPDF_ANNOT | pypdfium2.raw.FPDF_REVERSE_BYTE_ORDER
        pypdfium2.raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
        if document.formenv is not None:
            pypdfium2.raw.FPDF_FFLDraw(document.formenv, bitmap, page, 0, 0, width, height, 0, flags)
        page.close()
        out.write(bitmap.buffer)
        bitmap.close()


def main() -> int:
    task: Task = json.loads(sys.stdin.buffer.readline())
    bound(task)
    try:
        document = pypdfium2.PdfDocument(sys.stdin.buffer.read())
        (draw if task["draw"] else tell)(document, task, sys.stdout.buffer)
    except pypdfium2.PdfiumError as error:
        return FAILURES.get(error.err_code, BROKEN)
    except MemoryError:
        return BROKEN
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
