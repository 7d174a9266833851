"""The region tab: a box, drawn or typed, and what is inside it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from onsight.core.errors import RequestError
from onsight.core.messages import Message
from onsight.tasks import describe
from onsight.ui.desk import Desk, noting
from onsight.ui.drawn import cut_out
from onsight.ui.mistakes import Mistake, check_inside, read_box
from onsight.ui.parts import bind, picture_input, problem, problem_line, stop_button


class RegionTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def describe(self, upload: str | None, typed: str) -> AsyncGenerator[tuple[str, str, str, str], None]:
        """The crop (HTML), the description so far, its figures, and the problem."""
        words, crop, text = self._desk.words, [""], ""
        try:
            picture = await self._desk.picture(upload)
            box = read_box(typed or "")

            def note(messages: tuple[Message, ...]) -> None:
                image = messages[0].images[0]
                check_inside(box, image.size)
                corners = {"x1": f"{box.x1:g}", "y1": f"{box.y1:g}", "x2": f"{box.x2:g}", "y2": f"{box.y2:g}"}
                crop[0] = cut_out(image, box, words("region.crop", **corners))

            yield "", "", "", ""
            async with aclosing(self._desk.follow(noting(describe.prompt(picture, box), note))) as said:
                async for piece in said:
                    text = piece.text
                    yield crop[0], text, piece.figures, ""
        except (Mistake, RequestError) as error:
            yield crop[0], text, "", problem(words, error)


def add_region_tab(desk: Desk) -> None:
    """Lay the tab out."""
    words, work = desk.words, RegionTab(desk)
    with gr.Tab(words("region.tab"), id="region"):
        gr.Markdown(words("region.help"))
        with gr.Row():
            with gr.Column(min_width=280):
                picture = picture_input(words, "region-picture")
                box = gr.Textbox(label=words("region.box"), placeholder="10,20,110,60", elem_id="region-box")
                ask = gr.Button(words("region.describe"), variant="primary", elem_id="region-ask")
                buttons = gr.Row()
            with gr.Column(min_width=280):
                crop = gr.HTML(elem_id="region-crop")
                text = gr.Textbox(label=words("region.text"), lines=4, buttons=["copy"], elem_id="region-text")
                figures = gr.Markdown(elem_classes="figures")
                trouble = problem_line()
        asked = bind([ask.click, box.submit], work.describe, [picture, box], [crop, text, figures, trouble])
        with buttons:
            stop_button(words, asked)
