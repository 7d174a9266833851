"""`onsight embed`: the vectors of pictures and of PDFs' pages, into a file or into the index that is searched."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import httpx
import typer
from rich.console import Console
from rich.progress import Progress

from onsight.cli.caller import Result, connected, post
from onsight.cli.pictures import STANDARD_INPUT, is_url, name_pictures
from onsight.cli.tasks import PageOption, read_page_option
from onsight.cli.vector_files import VectorFile
from onsight.config import RETRIEVER, Settings
from onsight.core.embedding import Embedding, ImageSpan
from onsight.core.errors import InvalidMedia, OnsightError, RequestError, StartError
from onsight.core.geometry import Size
from onsight.core.pages import Pages
from onsight.core.together import together
from onsight.index.collection import Collection, Place
from onsight.index.pages import KeptPage
from onsight.media.decode_child import DecodeChild
from onsight.media.limits import MediaLimits
from onsight.media.pdf import count_pages, is_pdf

INDEX_FOLDER = "onsight-index"
"""The folder of the index where none is named."""

_PAGES_AT_ONCE = 8
"""Of a PDF, in one request: so a long one is kept bit by bit, and is no more than a server looks at."""


class _Store(Protocol):
    """Where pages' vectors go."""

    def prepare(self, model: str, dims: int) -> None: ...

    def known(self, file: str, digest: str) -> frozenset[int | None]: ...

    def add(self, pages: Sequence[KeptPage]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where vectors go."""

    out: Annotated[str, typer.Option(help="NAME.npz, NAME.parquet, or qdrant; what stands there is not made again.")]
    compress: Annotated[
        Literal["int8", "binary"] | None,
        typer.Option(help="A Qdrant server searches a copy in this form first, which takes less memory."),
    ] = None


def embed(
    settings: Settings,
    files: Annotated[list[str], typer.Argument(help="Pictures and PDFs: files, folders, patterns.")],
    target: Target,
    url: Annotated[str | None, typer.Option(help="Ask this running server, like http://127.0.0.1:8000.")] = None,
    at_once: Annotated[int, typer.Option(help="Files on their way at once.", min=1)] = 4,
    pages: PageOption = None,
) -> None:
    """Make vectors of pictures and of PDFs' pages, to be searched; a bad file or page is reported, the others go on."""
    wanted = read_page_option(pages)
    names = name_pictures(files, pdfs=True)
    for name in names:
        if is_url(name) or name == STANDARD_INPUT:
            raise StartError(f"{name[:80]} is no file, and search must find the page again: save it, and name the file")
    with closing(_store(settings, target)) as store:
        bad = asyncio.run(_Embedding(settings, url, store, wanted).run(names, at_once))
    if bad:
        raise typer.Exit(1)


def place_of(settings: Settings) -> Place:
    """Where the index is, by the settings or by default."""
    return Place(settings.qdrant or INDEX_FOLDER, settings.qdrant_collection, settings.qdrant_key)


def for_vectors(settings: Settings) -> Settings:
    """Settings of the server in this process: with the bundled retriever where no model is named, and without the
    index, which the command itself has open."""
    named = "model" in settings.model_fields_set
    return settings.model_copy(update={"qdrant": None, "model": settings.model if named else RETRIEVER})


async def ask_vectors(client: httpx.AsyncClient, model: str | None, one: object) -> Result:
    """The server's answer for one input, or `error`."""
    body: dict[str, object] = {"input": [one], "encoding_format": "base64"}
    return await post(client, "/v1/embeddings", json=body if model is None else {**body, "model": model})


def read_vectors(item: object) -> Embedding:
    """The vectors of one of an answer's items. Raises OnsightError when it is none."""
    match item:
        case {"embedding": str(coded), "shape": [int(rows), int(dims)]}:
            return Embedding(base64.b64decode(coded), rows, dims)
    raise OnsightError("the server's answer holds no vectors; is it an Onsight server of this version?")


def _store(settings: Settings, target: Target) -> _Store:
    """Raises StartError."""
    if target.out == "qdrant":
        return Collection(place_of(settings), target.compress)
    path = Path(target.out).expanduser()
    if path.suffix not in (".npz", ".parquet"):
        raise StartError(f"--out {target.out}: write NAME.npz, NAME.parquet or qdrant")
    if target.compress is not None:
        raise StartError(f"--compress {target.compress} is for --out qdrant with a server; leave it out")
    return VectorFile(path)


class _Embedding:
    """One run of the command."""

    def __init__(self, settings: Settings, url: str | None, store: _Store, wanted: Pages) -> None:
        """`wanted`: which pages of PDFs."""
        self._settings = for_vectors(settings)
        self._model = settings.model if "model" in settings.model_fields_set else None
        self._url = url
        self._store = store
        self._wanted = wanted
        self._child = DecodeChild()
        self._writing = asyncio.Lock()
        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        # A file counts as one page until it is opened.
        self._pages = self._new = self._files = self._bad = 0
        self._shown = self._bar.add_task("embed")

    async def run(self, names: Sequence[str], at_once: int) -> bool:
        """Embed all files; whether anything was reported."""
        places = asyncio.Semaphore(at_once)
        async with connected(self._settings, self._url) as (client, _):
            await self._prepare(client)
            with self._bar:
                self._count(len(names))

                async def one(name: str) -> None:
                    async with places:
                        await self._file(client, name)

                await together(one(name) for name in names)
        self._child.close()
        print(f"onsight: {self._new} pages are new, of {self._files} files", file=sys.stderr)
        return self._bad > 0

    def _count(self, more: int) -> None:
        self._pages += more
        self._bar.update(self._shown, total=self._pages)

    def _report(self, place: str, why: str) -> None:
        self._bad += 1
        print(f"onsight: {place}: {why}", file=sys.stderr)

    async def _prepare(self, client: httpx.AsyncClient) -> None:
        """Learn of the model before anything is embedded or passed over. Raises OnsightError."""
        match await ask_vectors(client, self._model, "a"):
            case {"model": str(model), "data": [item]}:
                await asyncio.to_thread(self._store.prepare, model, read_vectors(item).dims)
            case answer:
                raise OnsightError(message_of(answer))

    async def _file(self, client: httpx.AsyncClient, name: str) -> None:
        """Embed one file, or report why not. Raises OnsightError for what concerns all of them."""
        try:
            data = await asyncio.to_thread(Path(name).read_bytes)
            pages = await asyncio.to_thread(self._pages_of, data)
        except (OSError, RequestError) as error:
            self._count(-1)
            why = error.message if isinstance(error, RequestError) else f"cannot be read: {error.strerror}"
            return self._report(name, why)
        file, digest = await asyncio.to_thread(os.path.abspath, name), hashlib.sha256(data).hexdigest()
        known = await asyncio.to_thread(self._store.known, file, digest)
        new = [page for page in pages if page not in known]
        self._count(len(new) - 1)
        coded, made = base64.b64encode(data).decode(), 0
        for start in range(0, len(new), _PAGES_AT_ONCE):
            portion = new[start : start + _PAGES_AT_ONCE]
            answer = await ask_vectors(client, self._model, _part(coded, portion))
            match answer:
                case {"model": str(model), "data": list(items)}:
                    kept = [_kept(item, file, digest, model) for item in items if not self._is_bad(item, name)]
                    async with self._writing:
                        await asyncio.to_thread(self._store.add, kept)
                    made += len(kept)
                case _:
                    self._report(name, message_of(answer))
                    if not _is_of_media(answer):
                        break
            self._bar.advance(self._shown, len(portion))
        self._new += made
        self._files += made > 0 or not new

    def _pages_of(self, data: bytes) -> Sequence[int | None]:
        """The pages of a PDF that are wanted; of a picture None. Raises RequestError."""
        if not is_pdf(data):
            return [None]
        return self._wanted.pick(count_pages(data, MediaLimits(), self._child))

    def _is_bad(self, item: object, name: str) -> bool:
        """Whether it is a page that has no vectors, which is reported."""
        match item:
            case {"object": "error", "page": page, "error": {"message": str(message)}}:
                self._report(f"{name} page {page}", message)
                return True
        return False


def _part(coded: str, pages: Sequence[int | None]) -> dict[str, object]:
    """The input for these pages of a file, in base64; a picture's one page is None."""
    named = {} if None in pages else {"pages": ",".join(map(str, pages))}
    return {"type": "file", "file": {"file_data": coded, **named}}


def _is_of_media(answer: Result) -> bool:
    """Whether other pages of the file may still do."""
    match answer:
        case {"error": {"code": InvalidMedia.code}}:
            return True
    return False


def _kept(item: object, file: str, digest: str, model: str) -> KeptPage:
    """Raises OnsightError for an item that is no page."""
    match item:
        case {
            "page": int() | None as page,
            "image": {
                "start": int(start),
                "length": int(length),
                "columns": int(columns),
                "width": int(width),
                "height": int(height),
            },
        }:
            embedding = replace(read_vectors(item), image=ImageSpan(start, length, columns))
            return KeptPage(file, page, digest, Size(width, height), model, embedding)
    raise OnsightError("the server's answer does not say where a page's picture is; is it Onsight of this version?")


def message_of(answer: Result) -> str:
    """What the server says instead of vectors."""
    match answer:
        case {"error": {"message": str(message)}}:
            return message
    return "the server's answer holds no vectors; is it an Onsight server of this version?"
