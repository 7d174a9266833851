"""The text tab: the text in a picture, to copy or to keep as a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from onsight.core.errors import RequestError
from onsight.tasks import ocr
from onsight.ui.desk import Desk
from onsight.ui.mistakes import Mistake
from onsight.ui.parts import bind, picture_input, problem, problem_line, stop_button


class OcrTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def read(self, upload: str | None) -> AsyncGenerator[tuple[str, str, str], None]:
        """The text so far, its figures, and the problem."""
        text = ""
        try:
            call = ocr.prompt(await self._desk.picture(upload))
            yield "", "", ""
            async with aclosing(self._desk.follow(call)) as said:
                async for piece in said:
                    text = piece.text
                    yield text, piece.figures, ""
        except (Mistake, RequestError) as error:
            yield text, "", problem(self._desk.words.sentence(error))


def add_ocr_tab(desk: Desk) -> None:
    """Lay the tab out."""
    words, work = desk.words, OcrTab(desk)
    with gr.Tab(words("ocr.tab"), id="ocr"):
        with gr.Row():
            with gr.Column(min_width=280):
                picture = picture_input(words, "ocr-picture")
                read = gr.Button(words("ocr.read"), variant="primary", elem_id="ocr-read")
                buttons = gr.Row()
            with gr.Column(min_width=280):
                text = gr.Textbox(label=words("ocr.text"), lines=12, buttons=["copy"], elem_id="ocr-text")
                figures = gr.Markdown(elem_classes="figures")
                trouble = problem_line()
                # The browser writes the file itself, so that no text of a visitor lies on the server's disk.
                keep = gr.Button(words("ocr.download"), elem_id="ocr-download")
        reading = bind([read.click], work.read, [picture], [text, figures, trouble])
        keep.click(
            None, [text], None, js="(text) => onsight.keep('ocr_result_', '.txt', text)", api_visibility="private"
        )
        with buttons:
            stop_button(words, reading)
