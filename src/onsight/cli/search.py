"""`onsight search`: which pages of the index answer a query, and where on them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from onsight.cli.caller import connected
from onsight.cli.embed import ask_vectors, for_vectors, message_of, place_of, read_vectors
from onsight.config import Settings
from onsight.core.embedding import Embedding
from onsight.core.errors import OnsightError, RequestError, StartError
from onsight.core.messages import Image, ImageRef
from onsight.core.pages import Pages
from onsight.index.collection import Collection, Hit
from onsight.index.pages import KeptPage, Page
from onsight.media.door import MediaDoor


def search(
    settings: Settings,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top: Annotated[int, typer.Option(help="So many pages, the best ones.", min=1, max=1000)] = 5,
    url: Annotated[str | None, typer.Option(help="Ask this running server, like http://127.0.0.1:8000.")] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Folder to write the pages to, with what answers the query marked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each page as a line of JSON.")] = False,
) -> None:
    """Find pages that `onsight embed --out qdrant` made vectors of: rank, score, file and page."""
    with closing(Collection(place_of(settings))) as collection:
        model, asked = asyncio.run(_embed(settings, url, query))
        collection.check(model, asked.dims)
        hits = collection.search(asked, top)
        kept = asyncio.run(collection.fetch([hit.page.id for hit in hits])) if draw is not None else []
    for rank, hit in enumerate(hits, 1):
        typer.echo(_line(rank, hit) if as_json else _row(rank, hit))
    if draw is None:
        return
    try:
        draw.mkdir(parents=True, exist_ok=True)
        bad = asyncio.run(_draw(asked, kept, draw))
    except OSError as error:
        raise StartError(f"{draw} cannot be written to: {error.strerror}") from None
    if bad:
        raise typer.Exit(1)


async def _embed(settings: Settings, url: str | None, query: str) -> tuple[str, Embedding]:
    """The model's name and the query's vectors. Raises OnsightError."""
    named = settings.model if "model" in settings.model_fields_set else None
    async with connected(for_vectors(settings), url) as (client, _):
        match await ask_vectors(client, named, query):
            case {"model": str(model), "data": [item]}:
                return model, read_vectors(item)
            case answer:
                raise OnsightError(message_of(answer))


def _row(rank: int, hit: Hit) -> str:
    page = "" if hit.page.page is None else f" page {hit.page.page}"
    return f"{rank} {hit.score:.3f} {hit.page.file}{page}"


def _line(rank: int, hit: Hit) -> str:
    page = hit.page
    facts = {"rank": rank, "score": hit.score, "file": page.file, "page": page.page, "id": page.id}
    return json.dumps({**facts, "sha256": page.digest, "model": page.model}, ensure_ascii=False)


async def _draw(query: Embedding, pages: Sequence[KeptPage], folder: Path) -> int:
    """Write each page with its heat-map; how many could not be. Raises OSError for a folder that cannot be used."""
    # Imported here: Pillow's decoders and numpy are not needed to search.
    from PIL import Image as Pillow

    from onsight.media.heat_map import draw_heat, heat_map

    door, bad = MediaDoor(), 0
    heats = [heat_map(query, page.embedding) for page in pages]
    try:
        for rank, (page, heat) in enumerate(zip(pages, heats, strict=True), 1):
            try:
                image = await _open(door, page)
            except (OSError, RequestError) as error:
                bad += 1
                print(f"onsight: {page.file} cannot be drawn: {error}", file=sys.stderr)
                continue
            picture = Pillow.frombytes("RGB", (image.width, image.height), image.pixels)
            draw_heat(picture, heat, heats[0])
            number = "" if page.page is None else f"-{page.page}"
            picture.save(folder / f"{rank}-{Path(page.file).stem}{number}.png")
    finally:
        door.close()
    return bad


async def _open(door: MediaDoor, page: Page) -> Image:
    """The page as it was embedded. Raises OSError, or RequestError for a file that has changed since."""
    data = await asyncio.to_thread(Path(page.file).read_bytes)
    if hashlib.sha256(data).hexdigest() != page.digest:
        raise RequestError("it has changed since it was embedded; embed it again")
    pages = Pages(() if page.page is None else ((page.page, page.page),))
    ((image,),) = await door.open_pages([ImageRef(data, pages=pages)])
    return image
