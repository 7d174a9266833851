"""The text tab: the text in a picture or a PDF, to copy or to keep as a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from onsight.core.errors import RequestError
from onsight.core.messages import Message
from onsight.core.pages import Pages
from onsight.tasks import ocr
from onsight.ui.desk import Desk, noting
from onsight.ui.drawn import thumbnails
from onsight.ui.mistakes import Mistake
from onsight.ui.parts import Document, bind, problem, problem_line, stop_button


class OcrTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def read(self, upload: str | None) -> AsyncGenerator[tuple[str, str, str, str], None]:
        """What the model saw (HTML), the text so far, its figures, and the problem."""
        words, seen, text = self._desk.words, [""], ""

        def note(messages: tuple[Message, ...]) -> None:
            seen[0] = thumbnails(messages[0].images, words)

        try:
            call = noting(ocr.prompt(await self._desk.picture(upload, Pages())), note)
            yield "", "", "", ""
            async with aclosing(self._desk.follow(call)) as said:
                async for piece in said:
                    text = piece.text
                    yield seen[0], text, piece.figures, ""
        except (Mistake, RequestError) as error:
            yield seen[0], text, "", problem(words, error)


def add_ocr_tab(desk: Desk) -> None:
    """Lay the tab out."""
    words, work = desk.words, OcrTab(desk)
    with gr.Tab(words("ocr.tab"), id="ocr"):
        with gr.Row():
            with gr.Column(min_width=280):
                file = Document(label=words("ocr.file"), file_types=["image", ".pdf"], height=160, elem_id="ocr-file")
                read = gr.Button(words("ocr.read"), variant="primary", elem_id="ocr-read")
                buttons = gr.Row()
                seen = gr.HTML(elem_id="ocr-seen")
            with gr.Column(min_width=280):
                text = gr.Textbox(label=words("ocr.text"), lines=12, buttons=["copy"], elem_id="ocr-text")
                figures = gr.Markdown(elem_classes="figures")
                trouble = problem_line()
                # The browser writes the file itself, so that no text of a visitor lies on the server's disk.
                keep = gr.Button(words("ocr.download"), elem_id="ocr-download")
        reading = bind([read.click], work.read, [file], [seen, text, figures, trouble])
        keep.click(
            None, [text], None, js="(text) => onsight.keep('ocr_result_', '.txt', text)", api_visibility="private"
        )
        with buttons:
            stop_button(words, reading)
