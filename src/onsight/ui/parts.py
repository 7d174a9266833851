"""Pieces that several tabs are made of, and the one way in which the page's events are bound."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from html import escape
from inspect import signature
from pathlib import Path

import gradio as gr

from onsight.core.errors import RequestError
from onsight.ui.desk import VISITOR
from onsight.ui.mistakes import Mistake
from onsight.ui.words import Words


def _no_example(_component: object) -> None:
    """In place of a file on another site, which Gradio would name to each browser."""


class Picture(gr.Image):  # type: ignore[misc]  # Gradio is untyped here
    """An uploaded picture, handed on as the path of its file: only the media door opens it."""

    is_template = True  # It looks as Gradio's own does.

    def preprocess(self, payload: gr.data_classes.ImageData | None) -> str | None:
        return None if payload is None else payload.path

    example_inputs = _no_example


class Pictures(gr.File):  # type: ignore[misc]
    """Several uploaded pictures, handed on as the paths of their files."""

    is_template = True

    def preprocess(self, payload: gr.data_classes.ListFiles | None) -> list[str]:
        return [] if payload is None else [file.path for file in payload.root]

    example_inputs = _no_example


class Document(gr.File):  # type: ignore[misc]
    """One uploaded picture or PDF, handed on as the path of its file."""

    is_template = True

    def preprocess(self, payload: gr.data_classes.FileData | None) -> str | None:
        return None if payload is None else payload.path

    example_inputs = _no_example


class Question(gr.MultimodalTextbox):  # type: ignore[misc]
    """A message with files."""

    is_template = True
    example_inputs = _no_example


# Gradio writes a stub beside every module that makes a component of its own. Type checkers would believe it.
with suppress(OSError):
    Path(__file__).with_suffix(".pyi").unlink(missing_ok=True)


def picture_input(words: Words, element: str) -> Picture:
    """A place for one picture; `element` is its id on the page."""
    return Picture(
        label=words("page.picture"),
        type="filepath",
        sources=["upload", "clipboard"],
        height=360,
        elem_id=element,
        buttons=[],
    )


def problem_line() -> gr.HTML:
    """Where a tab says what went wrong."""
    return gr.HTML("", elem_classes="problem")


def problem(words: Words, error: Mistake | RequestError) -> str:
    """The error as the problem line shows it (HTML); readers of the screen hear its sentence at once."""
    return f'<p role="alert">{escape(words.sentence(error))}</p>{folded(words, words.details(error))}'


def folded(words: Words, details: str) -> str:
    """The server's own words (HTML), folded away from whoever did not ask for English."""
    is_open = " open" if words.language == "en" else ""
    summary = f"<summary>{escape(words('error.details'))}</summary>"
    return f'<details{is_open}>{summary}<p lang="en">{escape(details)}</p></details>' if details else ""


def bind(
    triggers: Sequence[Callable[..., object]],
    work: Callable[..., AsyncGenerator[object, None]],
    inputs: Sequence[object],
    outputs: Sequence[object],
) -> object:
    """Run `work` on any of `triggers`, in the visitor's name; its parameter `request`, if it has one, is Gradio's.

    Nothing of it is an API, and nothing waits but in the server's own queue.
    """

    async def asked(request: gr.Request, *given: object) -> AsyncGenerator[object, None]:
        visitor = request.request.scope["state"]["visitor"]
        wanted = {"request": request} if "request" in signature(work).parameters else {}
        async with aclosing(work(*given, **wanted)) as pieces:
            VISITOR.set(visitor)
            async for piece in pieces:
                yield piece
                VISITOR.set(visitor)  # the next piece may be asked for by another task

    return gr.on(
        list(triggers),
        asked,
        list(inputs),
        list(outputs),
        api_visibility="private",
        concurrency_limit=None,
        show_progress="hidden",
    )


def stop_button(words: Words, running: object) -> gr.Button:
    """A button that ends what `running`, a bound event, does: its generator is closed, its request cancelled."""
    button = gr.Button(words("page.stop"), variant="stop", size="sm")
    button.click(None, cancels=[running], api_visibility="private")
    return button
