"""One question about many pictures: several on their way at once, results kept as JSON lines, failures reported."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import httpx
import typer
from rich.console import Console
from rich.progress import Progress

from onsight.cli.caller import Result, connected, failed, post
from onsight.cli.pictures import is_url, name_pictures, read_picture
from onsight.config import Settings
from onsight.core.errors import StartError

Show = Callable[[Result], str]
"""A result as it is printed for people. A line of the results' file has `image` and `asked` beside it."""

_OF_PAGES = ("caption", "ocr")
"""The tasks in which a PDF is as welcome as a picture."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What every picture task asks of its command line."""

    images: Annotated[list[str], typer.Argument(help="Files, folders, patterns, URLs, or - for standard input.")]
    url: Annotated[str | None, typer.Option(help="Ask this running server, like http://127.0.0.1:8000.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON.")] = False
    out: Annotated[
        Path | None,
        typer.Option(help="Add each result to this file, a line of JSON each; what stands in it is not asked again."),
    ] = None
    at_once: Annotated[
        int | None, typer.Option(help="Pictures on their way at once; enough to keep the model busy if unset.", min=1)
    ] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens; the task's own if unset.")] = None


def sweep(settings: Settings, command: Sweep, task: str, fields: Mapping[str, str], show: Show) -> list[Result]:
    """Ask `task` with the form's `fields` about every picture; print, keep and return what came, in the order given.

    Raises StartError before anything is asked, typer.Exit with code 1 after the last picture when one failed.
    """
    asked = {"task": task, **fields}
    if command.max_tokens is not None:
        asked["max_tokens"] = str(command.max_tokens)
    names = name_pictures(command.images, pdfs=task in _OF_PAGES)
    with _kept(command.out) as (file, done):
        waiting = [name for name in names if (name, _key(asked)) not in done]
        printer = _Printer(command, file, show, len(names))
        results = asyncio.run(_sweep(settings, command, asked, waiting, printer)) if waiting else []
    if len(waiting) < len(names):
        print(f"onsight: {len(names) - len(waiting)} of {len(names)} were in {command.out} already", file=sys.stderr)
    if any("error" in result for result in results):
        raise typer.Exit(1)
    return results


class _Printer:
    """Where results go: the file at once, standard output in the order given, failures to standard error."""

    def __init__(self, command: Sweep, file: TextIO | None, show: Show, pictures: int) -> None:
        self._as_json = command.as_json
        self._file = file
        self._show = show
        self._many = pictures > 1

    def keep(self, result: Result) -> None:
        if self._file is not None:
            self._file.write(json.dumps(result, ensure_ascii=False) + "\n")
            self._file.flush()

    def show(self, result: Result) -> None:
        match result:
            case {"image": name, "error": {"message": message}}:
                print(f"onsight: {name}: {message}", file=sys.stderr)
                if self._as_json:
                    typer.echo(json.dumps(result, ensure_ascii=False))
            case _ if self._as_json:
                typer.echo(json.dumps(result, ensure_ascii=False))
            case {"image": name}:
                typer.echo(f"{name}:\n{self._show(result)}\n" if self._many else self._show(result))


async def _sweep(
    settings: Settings, command: Sweep, asked: Mapping[str, str], names: list[str], printer: _Printer
) -> list[Result]:
    """Ask about every picture, several at once, and show the results in order."""
    console = Console(stderr=True)
    quiet = len(names) < 2 or not console.is_terminal
    results: list[Result] = []
    async with connected(settings, command.url) as (client, usual):
        places = asyncio.Semaphore(command.at_once or usual)

        async def one(name: str) -> Result:
            async with places:
                result = {"image": name, "asked": asked, **await _ask(client, name, asked)}
            printer.keep(result)
            return result

        with Progress(console=console, transient=True, disable=quiet) as bar:
            asking = [asyncio.create_task(one(name)) for name in names]
            shown = bar.add_task(asked["task"], total=len(names))
            for waiting in asking:
                results.append(await waiting)
                printer.show(results[-1])
                bar.advance(shown)
    return results


async def _ask(client: httpx.AsyncClient, name: str, asked: Mapping[str, str]) -> Result:
    """The server's answer, or `error`."""
    fields = {field: value for field, value in asked.items() if field != "task"}
    try:
        if is_url(name):
            # A form with no file in it: each field is a part of its own.
            files = {field: (None, value) for field, value in {**fields, "image": name}.items()}
            return await post(client, f"/v1/{asked['task']}", files=files)
        data = await asyncio.to_thread(read_picture, name)
        return await post(client, f"/v1/{asked['task']}", data=fields, files={"file": ("picture", data)})
    except OSError as error:
        return failed(f"cannot be read: {error.strerror}")


def _key(asked: object) -> str:
    return json.dumps(asked, sort_keys=True)


@contextmanager
def _kept(path: Path | None) -> Iterator[tuple[TextIO | None, set[tuple[str, str]]]]:
    """The file to add results to, and which (picture, question) it has answers to. Raises StartError."""
    if path is None:
        yield None, set()
        return
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        file = path.open("a", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"results file {path} cannot be used: {error}") from None
    with file:
        if text and not text.endswith("\n"):
            # A run that was killed in the middle of a line; the line is no answer, and the next one is its own.
            file.write("\n")
        yield file, set(_answered(text))


def _answered(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        match result:
            case {"image": str(name), "asked": asked} if "error" not in result:
                yield name, _key(asked)
