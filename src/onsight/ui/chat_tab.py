"""The chat tab: pictures or a video, and many questions about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from html import escape

import gradio as gr

from onsight.core.errors import RequestError
from onsight.core.generation import Sampling
from onsight.core.messages import Draft, Message, Text
from onsight.media.uploads import as_reference
from onsight.tasks.chat import ChatCall
from onsight.ui.desk import Desk, new_id, noting
from onsight.ui.drawn import thumbnails
from onsight.ui.mistakes import Mistake
from onsight.ui.packaged import example_url
from onsight.ui.parts import Question, bind, problem, problem_line, stop_button

_MAX_TOKENS = 512
_TEMPERATURE = 0.7
_VIDEO_ENDINGS = [".mp4", ".m4v", ".mov", ".webm"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `files`: paths of uploads; `seen`: HTML of what the model saw of them."""

    question: str
    files: tuple[str, ...] = ()
    seen: str = ""
    answer: str = ""
    figures: str = ""


History = tuple[Turn, ...]
Shown = tuple[list[dict[str, str]], History, object, str]
"""The conversation as it is shown and as it is kept, what stands in the message field, and the problem."""


class ChatTab:
    """The tab's work, apart from how it looks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ask(
        self, given: dict[str, object], history: History, max_tokens: float, temperature: float
    ) -> AsyncGenerator[Shown, None]:
        """Answer `given` (its `text`, its `files`) after `history`; a question that fails goes back to its field."""
        # A question that was stopped before its answer began is no part of the conversation.
        kept = tuple(turn for turn in history if turn.answer)
        text, files = str(given.get("text") or "").strip(), given.get("files")
        turn = Turn(text, tuple(str(file) for file in files) if isinstance(files, list) else ())
        try:
            if not text:
                raise Mistake("no_question")
            yield self._shown((*kept, turn), {"text": "", "files": []})
            sampling = Sampling(max_tokens=int(max_tokens), temperature=temperature)
            async with aclosing(self._answers(kept, turn, sampling)) as growing:
                async for turn in growing:
                    yield self._shown((*kept, turn))
        except (Mistake, RequestError) as error:
            back = {"text": text, "files": list(turn.files)}
            yield (*self._shown(kept, back)[:3], problem(self._desk.words, error))

    async def _answers(self, kept: History, turn: Turn, sampling: Sampling) -> AsyncGenerator[Turn, None]:
        seen: list[str] = []

        def note(messages: tuple[Message, ...]) -> None:
            seen.append(thumbnails(messages[-1].media, self._desk.words))

        caller = self._desk.begin()
        drafts = await asyncio.to_thread(self._drafts, (*kept, turn))
        call = ChatCall(drafts, self._desk.place.model.name, sampling, request_id=new_id(), caller=caller)
        async with aclosing(self._desk.follow(noting(call, note))) as said:
            async for piece in said:
                yield replace(turn, seen="".join(seen), answer=piece.text, figures=piece.figures)

    def _drafts(self, history: History) -> tuple[Draft, ...]:
        """The whole conversation, its files read again: the server knows them by their content."""
        drafts = []
        for turn in history:
            media = tuple(as_reference(self._desk.uploads.read(file)) for file in turn.files)
            drafts.append(Draft("user", (*media, Text(turn.question))))
            if turn.answer:
                drafts.append(Draft("assistant", (Text(turn.answer),)))
        return tuple(drafts)

    def _shown(self, history: History, field: object = None) -> Shown:
        messages = []
        for turn in history:
            messages.append({"role": "user", "content": f"{escape(turn.question)}\n\n{turn.seen}".strip()})
            if turn.answer:
                figures = f"\n\n<small>{escape(turn.figures)}</small>" if turn.figures else ""
                messages.append({"role": "assistant", "content": turn.answer + figures})
        return messages, history, gr.skip() if field is None else field, ""


def _nothing() -> Shown:
    return [], (), {"text": "", "files": []}, ""


def add_chat_tab(desk: Desk) -> None:
    """Lay the tab out."""
    words, work = desk.words, ChatTab(desk)
    card = desk.place.model.card
    with gr.Tab(words("chat.tab"), id="chat"):
        history = gr.State((), time_to_live=3600)
        talk = gr.Chatbot(
            label=words("chat.talk"),
            height="55vh",
            placeholder=words("chat.empty"),
            latex_delimiters=[],
            buttons=["copy"],
            elem_id="talk",
        )
        field = Question(
            label=words("chat.message"),
            placeholder=words("chat.placeholder"),
            file_count="multiple",
            file_types=["image", ".pdf", *(_VIDEO_ENDINGS if card.frames else ())],
            max_plain_text_length=100_000,
            elem_id="message",
        )
        trouble = problem_line()
        buttons = gr.Row()
        with gr.Accordion(words("page.settings"), open=False):
            default = card.defaults.temperature
            most = gr.Slider(1, 4096, _MAX_TOKENS, step=1, label=words("page.tokens"))
            warmth = gr.Slider(
                0.0, 2.0, _TEMPERATURE if default is None else default, step=0.05, label=words("page.temperature")
            )
        shown = [talk, history, field, trouble]
        asked = bind([field.submit], work.ask, [field, history, most, warmth], shown)
        with buttons:
            stop_button(words, asked)
            clear = gr.Button(words("chat.clear"), size="sm")
            for cleared in (clear.click, talk.clear):
                # Afterwards, since the last piece of an answer that is just being ended would come back.
                ended = cleared(None, cancels=[asked], api_visibility="private")
                ended.then(_nothing, None, shown, api_visibility="private")
        _add_examples(desk, field)


def _add_examples(desk: Desk, field: Question) -> None:
    """Pictures of our own, each with a button that puts it and a question into the message field."""
    asked_in = desk.words_for(desk.place.model.card)
    gr.Markdown(desk.words("page.examples"))
    if asked_in is not desk.words:
        gr.Markdown(desk.words(f"page.only_{asked_in.language}"), elem_classes="note")
    with gr.Row():
        for example, key in zip(desk.examples.screens, ("chat.describe", "chat.read", "chat.count"), strict=False):
            with gr.Column(min_width=160):
                gr.HTML(f'<img class="example" src="{example_url(example)}" alt="">')
                choose = gr.Button(desk.words(key), size="sm", elem_classes="example-button")
                given = {"text": asked_in(key), "files": [str(example)]}
                choose.click(partial(dict, given), None, field, api_visibility="private")
