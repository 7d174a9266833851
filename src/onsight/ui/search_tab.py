"""The search tab: pages and a question, and the pages in the order in which they answer it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import gradio as gr

from onsight.core.byte_cache import ByteCache
from onsight.core.embedding import Embedding
from onsight.core.errors import EngineFailed, InvalidRequest, RequestError, TimedOut, TooLarge
from onsight.core.messages import ImageRef, Text
from onsight.core.pages import Pages
from onsight.media.heat_map import Heat, heat_map
from onsight.tasks.embed import EmbedCall, Embedded, Refused, ScoreCall
from onsight.ui.desk import VISITOR, Desk, new_id
from onsight.ui.drawn import heated
from onsight.ui.mistakes import Mistake
from onsight.ui.packaged import example_url
from onsight.ui.parts import Pictures, bind, folded, problem, problem_line, stop_button
from onsight.ui.words import Words

_FILES_AT_ONCE = 8
_BEST = 5
_KEPT_BYTES = 128 << 20
"""Vectors of pages that the next question finds again; a page of ColQwen2.5 has at most 0.4 MB."""

Shown = tuple[str, str, str, str]
"""The progress bar, the best pages and the table of all (HTML), and the problem."""

Vectors = tuple[tuple[int | None, Embedding], ...]
"""(page of a PDF, vectors) of each page of a file."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page of an upload; `number`: which one of a PDF, from 1."""

    upload: str
    number: int | None
    embedding: Embedding
    score: float = 0.0


@dataclass(slots=True)
class _Pile:
    """The pages that were read so far, and the files that have none, with the reason."""

    sheets: list[Sheet] = field(default_factory=list)
    refused: list[tuple[str, RequestError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Unread:
    """A file whose vectors are not known. `key`: SHA-256 of its bytes."""

    upload: str
    key: str
    data: bytes


class SearchTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._model = desk.place.roster.embedders[0]
        self._kept: ByteCache[Vectors] = ByteCache(_KEPT_BYTES)

    async def find(self, uploads: list[str], question: str) -> AsyncGenerator[Shown, None]:
        """The pages in their order as soon as it is known, then with what was found on the best. Closing it ends it."""
        words, pile, began_s = self._desk.words, _Pile(), time.monotonic()
        told, table, best = "", "", list[str]()
        try:
            if not uploads:
                raise Mistake("no_pages")
            if not question.strip():
                raise Mistake("no_search")
            self._desk.begin()
            for start in range(0, len(uploads), _FILES_AT_ONCE):
                yield self._bar(start, len(uploads)), "", "", ""
                await self._read(uploads[start : start + _FILES_AT_ONCE], pile)
            yield self._bar(len(uploads), len(uploads)), "", self._table((), pile), ""
            if not pile.sheets:
                return
            query = await self._query(question)
            ranked = await self._rank(query, pile.sheets)
            seconds = f"{time.monotonic() - began_s:.1f}"
            told = f'<p class="figures">{escape(words("search.figures", pages=len(ranked), seconds=seconds))}</p>'
            table = self._table(ranked, pile)
            yield told, "", table, ""
            scale = heat_map(query, ranked[0].embedding)
            for place, sheet in enumerate(ranked[:_BEST], 1):
                best.append(await self._drawn(place, sheet, query, scale))
                yield told, _grid(best), table, ""
        except (Mistake, RequestError) as error:
            # What was found before stays.
            yield told, _grid(best), table, problem(words, error)

    async def _read(self, uploads: Sequence[str], pile: _Pile) -> None:
        """Put the pages of a few files on the pile; a file that is known by its bytes is not embedded again."""
        unread = []
        for upload in uploads:
            try:
                file = await asyncio.to_thread(self._load, upload)
            except RequestError as error:
                pile.refused.append((upload, error))
                continue
            known = self._kept.find(file.key)
            if known is None:
                unread.append(file)
            else:
                pile.sheets += [Sheet(upload, number, embedding) for number, embedding in known]
        if unread:
            await self._embed(unread, pile)

    def _load(self, upload: str) -> _Unread:
        data = self._desk.uploads.read(upload)
        return _Unread(upload, hashlib.sha256(data).hexdigest(), data)

    async def _embed(self, files: Sequence[_Unread], pile: _Pile) -> None:
        pages = tuple(ImageRef(file.data, pages=Pages()) for file in files)
        call = EmbedCall(pages, self._model.name, streamed=True, request_id=new_id(), caller=VISITOR.get())
        made: list[list[tuple[int | None, Embedding]]] = [[] for _ in files]
        try:
            async with aclosing(self._desk.place.embed.stream(call)) as items:
                async for item in items:
                    if isinstance(item, Refused):
                        pile.refused.append((files[item.index].upload, item.error))
                    else:
                        made[item.index].append((item.page, item.embedding))
        except (InvalidRequest, TooLarge, TimedOut, EngineFailed) as error:
            # A request for one file alone fails with it.
            if len(files) > 1:
                raise
            pile.refused.append((files[0].upload, error))
        for file, vectors in zip(files, made, strict=True):
            pile.sheets += [Sheet(file.upload, number, embedding) for number, embedding in vectors]
            # A file with a bad page is read again, and the page told of again.
            if vectors and all(upload != file.upload for upload, _ in pile.refused):
                self._kept.keep(file.key, tuple(vectors), sum(len(embedding.values) for _, embedding in vectors))

    async def _query(self, question: str) -> Embedding:
        call = EmbedCall((Text(question.strip()),), self._model.name, request_id=new_id(), caller=VISITOR.get())
        async with aclosing(self._desk.place.embed.stream(call)) as items:
            (made,) = [item async for item in items]
        assert isinstance(made, Embedded)  # a request for one input alone fails with it
        return made.embedding

    async def _rank(self, query: Embedding, sheets: Sequence[Sheet]) -> list[Sheet]:
        """The pages with their scores, the best first."""
        call = ScoreCall(
            (query,), tuple(sheet.embedding for sheet in sheets), self._model.name, new_id(), VISITOR.get()
        )
        scores = await self._desk.place.embed.score(call)
        scored = [replace(sheet, score=score) for sheet, score in zip(sheets, scores.values, strict=True)]
        return sorted(scored, key=lambda sheet: -sheet.score)

    async def _drawn(self, rank: int, sheet: Sheet, query: Embedding, scale: Heat) -> str:
        """The page with what the question found on it (HTML); `scale`: the best page's heat."""
        place, words = self._desk.place, self._desk.words
        pages = None if sheet.number is None else Pages(((sheet.number, sheet.number),))
        deadline = place.admission.deadline()
        with place.admission.place(caller=VISITOR.get()), place.admission.pixels(VISITOR.get()) as hold:
            data = await asyncio.to_thread(self._desk.uploads.read, sheet.upload)
            opening = place.door.open_pages((ImageRef(data, pages=pages),), hold, VISITOR.get())
            ((image,),) = await deadline.within(opening)
            label = words("search.hit", rank=rank, place=self._name(sheet), score=f"{sheet.score:.2f}")
            return await asyncio.to_thread(heated, image, heat_map(query, sheet.embedding), scale, label)

    def _name(self, sheet: Sheet) -> str:
        file = Path(sheet.upload).name
        return file if sheet.number is None else self._desk.words("search.on_page", file=file, page=sheet.number)

    def _bar(self, done: int, total: int) -> str:
        told = escape(self._desk.words("search.progress", done=done, total=total))
        return f'<label>{told} <progress max="{total}" value="{done}"></progress></label>'

    def _table(self, ranked: Sequence[Sheet], pile: _Pile) -> str:
        words = self._desk.words
        heads = [f'<th scope="col">{escape(words(f"search.{name}"))}</th>' for name in ("rank", "place", "score")]
        lines = [
            f"<tr><td>{rank}</td><td>{escape(self._name(sheet))}</td><td>{sheet.score:.2f}</td></tr>"
            for rank, sheet in enumerate(ranked, 1)
        ]
        for upload, error in pile.refused:
            told = escape(f"{words('search.failed')}: {words.sentence(error)}")
            lines.append(
                f'<tr><td></td><td>{escape(Path(upload).name)}</td><td class="failed">{told}'
                f"{folded(words, words.details(error))}</td></tr>"
            )
        return f'<table class="rows"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="found">{"".join(figures)}</div>' if figures else ""


def add_search_tab(desk: Desk) -> None:
    """Lay the tab out."""
    words, work = desk.words, SearchTab(desk)
    card = desk.place.roster.embedders[0].card
    asked_in = desk.words_for(card)
    with gr.Tab(words("search.tab"), id="search"):
        with gr.Row():
            with gr.Column(min_width=280, scale=1):
                files = Pictures(
                    label=words("search.files"),
                    file_count="multiple",
                    file_types=["image", ".pdf"],
                    height=160,
                    elem_id="search-files",
                )
                question = gr.Textbox(
                    label=words("search.question"),
                    placeholder=asked_in("search.placeholder"),
                    elem_id="search-question",
                )
                if asked_in is not words:
                    gr.Markdown(words(f"page.only_{asked_in.language}"), elem_classes="note")
                ask = gr.Button(words("search.find"), variant="primary", elem_id="search-ask")
                buttons = gr.Row()
                _add_example(desk, files, question, asked_in)
            with gr.Column(min_width=280, scale=2):
                bar, trouble = gr.HTML(elem_id="search-bar"), problem_line()
                best, table = gr.HTML(elem_id="search-best"), gr.HTML(elem_id="search-table")
        asked = bind([ask.click, question.submit], work.find, [files, question], [bar, best, table, trouble])
        with buttons:
            stop_button(words, asked)


def _add_example(desk: Desk, files: Pictures, question: gr.Textbox, asked_in: Words) -> None:
    """Pages of our own, and a button that puts them and a question into their fields."""
    if desk.examples.pages:
        shown = "".join(f'<img class="example" src="{example_url(page)}" alt="">' for page in desk.examples.pages)
        gr.HTML(f'<p class="examples">{shown}</p>')
        choose = gr.Button(desk.words("search.example"), size="sm", elem_id="search-example")
        given = [list(map(str, desk.examples.pages)), asked_in("search.placeholder")]
        choose.click(lambda: given, None, [files, question], api_visibility="private")
