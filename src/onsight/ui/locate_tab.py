"""The where-is-it tab: a target in words, its place drawn on the picture and told in the picture's own pixels."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator
from pathlib import Path

import gradio as gr

from onsight.core.errors import RequestError, UnreadableAnswer
from onsight.core.messages import Image, Message
from onsight.tasks import locate
from onsight.tasks.chat import collect
from onsight.tasks.locate import Instance, Located, Wanted
from onsight.ui.desk import Desk, noting
from onsight.ui.drawn import marked
from onsight.ui.mistakes import Mistake
from onsight.ui.parts import bind, picture_input, problem, problem_line, stop_button

Found = tuple[str, str, str, str]
"""The marked picture (HTML), the coordinates, the command line, and the problem."""


class LocateTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def find(
        self, upload: str | None, target: str, shape: str, every: bool, request: gr.Request
    ) -> AsyncGenerator[Found, None]:
        """Where `target` is: first the command line that asks the same, then all of it."""
        words, opened = self._desk.words, list[Image]()
        try:
            picture = await self._desk.picture(upload)
            wanted = Wanted(target.strip(), every, "box" if shape == "box" else "point")
            if not wanted.target:
                raise Mistake("no_target")

            def note(messages: tuple[Message, ...]) -> None:
                opened.append(messages[0].images[0])

            curl = curl_line(request, Path(str(upload)).name, wanted)
            yield "", "", curl, ""
            call = noting(locate.prompt(picture, wanted), note)
            (answer,) = await collect(self._desk.place.chat.stream(call))
            located = locate.read(answer, picture.model.card, wanted)
            label = words("locate.marked", count=len(located.instances))
            places = [instance.box or instance.point for instance in located.instances]
            yield await asyncio.to_thread(marked, opened[0], places, label), self._lines(located), curl, ""
        except UnreadableAnswer as error:
            said = Mistake("no_place", answer=error.answer)
            yield "", "", "", problem(words, said)
        except (Mistake, RequestError) as error:
            yield "", "", "", problem(words, error)

    def _lines(self, located: Located) -> str:
        return "\n".join(self._line(instance) for instance in located.instances) or self._desk.words("locate.none")

    def _line(self, instance: Instance) -> str:
        sure, box, point = f"{instance.confidence:.2g}", instance.box, instance.point
        if box is None:
            return self._desk.words("locate.point_line", x=f"{point.x:.1f}", y=f"{point.y:.1f}", sure=sure)
        edges = {"x1": f"{box.x1:.1f}", "y1": f"{box.y1:.1f}", "x2": f"{box.x2:.1f}", "y2": f"{box.y2:.1f}"}
        return self._desk.words("locate.box_line", **edges, sure=sure)


def curl_line(request: gr.Request, file: str, wanted: Wanted) -> str:
    """The command that asks the API for the same, as a shell reads it."""
    fields = [f"file=@{file}", f"target={wanted.target}", f"shape={wanted.shape}"]
    fields += ["all=true"] if wanted.every else []
    address = f"{request.url.scheme}://{request.headers['host']}/v1/locate"
    key = ' -H "Authorization: Bearer $ONSIGHT_API_KEY"' if "onsight_page" in request.cookies else ""
    # --form-string takes what a visitor typed as it is; -F would read "@" and ";" in it.
    told = [f"-F {shlex.quote(fields[0])}", *(f"--form-string {shlex.quote(field)}" for field in fields[1:])]
    return f"curl {shlex.quote(address)}{key} {' '.join(told)}"


def add_locate_tab(desk: Desk) -> None:
    """Lay the tab out; it offers what the model's card does."""
    words, work, card = desk.words, LocateTab(desk), desk.place.model.card
    shapes = [
        (words(f"locate.{shape}"), shape)
        for shape, name in (("point", "locate"), ("box", "locate_box"))
        if card.prompt(name) is not None
    ]
    with gr.Tab(words("locate.tab"), id="locate"):
        with gr.Row():
            with gr.Column(min_width=280):
                picture = picture_input(words, "locate-picture")
                target = gr.Textbox(
                    label=words("locate.target"), placeholder=words("locate.placeholder"), elem_id="locate-target"
                )
                shape = gr.Radio(shapes, value=shapes[0][1], label=words("locate.shape"), visible=len(shapes) > 1)
                every = gr.Checkbox(label=words("locate.every"), visible=card.prompt("locate_all") is not None)
                ask = gr.Button(words("locate.find"), variant="primary", elem_id="locate-ask")
                buttons = gr.Row()
            with gr.Column(min_width=280):
                drawn = gr.HTML(elem_id="locate-drawn")
                places = gr.Textbox(label=words("locate.places"), lines=2, buttons=["copy"], elem_id="locate-places")
                curl = gr.Textbox(label=words("locate.curl"), lines=2, buttons=["copy"], elem_id="locate-curl")
                trouble = problem_line()
        asked = bind(
            [ask.click, target.submit], work.find, [picture, target, shape, every], [drawn, places, curl, trouble]
        )
        with buttons:
            stop_button(words, asked)
