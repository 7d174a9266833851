"""The captions tab: many pictures, each with its caption, as a table and as a file."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from html import escape
from pathlib import Path

import gradio as gr

from onsight.core.errors import Overloaded, RequestError
from onsight.tasks import caption
from onsight.tasks.caption import Length
from onsight.tasks.chat import collect
from onsight.ui.desk import Desk
from onsight.ui.mistakes import Mistake
from onsight.ui.parts import Pictures, bind, folded, problem, problem_line, stop_button

_AT_ONCE = 4
_PROMPTS: tuple[tuple[Length, str], ...] = (("short", "caption_short"), ("normal", "caption"), ("long", "caption_long"))

Shown = tuple[str, str, str, str, str]
"""The progress bar and the table (HTML), the same as CSV and as JSON lines, and the problem."""


@dataclass(frozen=True, slots=True)
class Row:
    """One picture: its caption, or why it has none, for the visitor and in the server's own words."""

    file: str
    caption: str = ""
    error: str = ""
    details: str = ""


class CaptionsTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def caption_all(self, uploads: list[str], length: Length) -> AsyncGenerator[Shown, None]:
        """Caption every picture, a few at once; a row is there as soon as it is known. Closing it cancels the rest."""
        if not uploads:
            yield "", "", "", "", problem(self._desk.words, Mistake("no_pictures"))
            return
        free = asyncio.Semaphore(_AT_ONCE)

        async def work(upload: str) -> Row:
            async with free:
                return await self._caption(upload, length)

        tasks = [asyncio.create_task(work(upload)) for upload in uploads]
        running = set(tasks)
        try:
            yield self._shown([], len(tasks))
            while running:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                yield self._shown([task.result() for task in tasks if task.done()], len(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _caption(self, upload: str, length: Length) -> Row:
        file = Path(upload).name
        while True:
            try:
                call = caption.prompt(await self._desk.picture(upload), length)
                (answer,) = await collect(self._desk.place.chat.stream(call))
                return Row(file, caption.read(answer))
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s)
            except RequestError as error:
                words = self._desk.words
                return Row(file, error=words.sentence(error), details=words.details(error))

    def _shown(self, rows: Sequence[Row], total: int) -> Shown:
        words, done = self._desk.words, len(rows)
        told = escape(words("captions.progress", done=done, total=total))
        bar = f'<label>{told} <progress max="{total}" value="{done}"></progress></label>'
        heads = "".join(f'<th scope="col">{escape(words(f"captions.{name}"))}</th>' for name in ("file", "caption"))
        lines = "".join(f"<tr><td>{escape(row.file)}</td>{self._cell(row)}</tr>" for row in rows)
        table = f'<table class="rows"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        return bar, table, as_csv(rows), as_jsonl(rows), ""

    def _cell(self, row: Row) -> str:
        if row.error:
            words = self._desk.words
            told = escape(f"{words('captions.failed')}: {row.error}")
            return f'<td class="failed">{told}{folded(words, row.details)}</td>'
        return f"<td>{escape(row.caption)}</td>"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows under the heads file, caption, error, details."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def as_jsonl(rows: Sequence[Row]) -> str:
    """One JSON object a line: file, and caption or error and details."""
    objects = ({name: text for name, text in asdict(row).items() if text} for row in rows)
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


def add_captions_tab(desk: Desk) -> None:
    """Lay the tab out; it offers the lengths that the model's card has."""
    words, work, card = desk.words, CaptionsTab(desk), desk.place.model.card
    lengths = [(words(f"captions.{length}"), length) for length, name in _PROMPTS if card.prompt(name) is not None]
    with gr.Tab(words("captions.tab"), id="captions"):
        files = Pictures(
            label=words("captions.files"),
            file_count="multiple",
            file_types=["image"],
            height=160,
            elem_id="captions-files",
        )
        length = gr.Radio(lengths, value="normal", label=words("captions.length"), visible=len(lengths) > 1)
        with gr.Row():
            start = gr.Button(words("captions.start"), variant="primary", elem_id="captions-start")
            buttons = gr.Row()
        bar, trouble, table = gr.HTML(elem_id="captions-bar"), problem_line(), gr.HTML(elem_id="captions-table")
        # Held for the browser, which writes the files itself.
        kept = {name: gr.Textbox(visible=False) for name in ("csv", "jsonl")}
        running = bind(
            [start.click], work.caption_all, [files, length], [bar, table, kept["csv"], kept["jsonl"], trouble]
        )
        with gr.Row():
            for name, text in kept.items():
                button = gr.Button(words(f"captions.{name}"), elem_id=f"captions-{name}")
                js = f"(text) => onsight.keep('captions_', '.{name}', text)"
                button.click(None, [text], None, js=js, api_visibility="private")
        with buttons:
            stop_button(words, running)
