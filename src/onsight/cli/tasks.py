"""`onsight caption`, `ocr`, `locate` and `describe`: the vision tasks, on one picture or on many."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer

from onsight.cli.caller import Result
from onsight.cli.pictures import STANDARD_INPUT, is_url, name_pictures, read_picture
from onsight.cli.sweep import Sweep, sweep
from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.core.geometry import Box, Point
from onsight.core.messages import Image as Picture
from onsight.core.messages import ImageRef
from onsight.core.pages import Pages, read_spans

PageOption = Annotated[str | None, typer.Option(help="Of PDFs: the pages to look at, like 1-3,7; all if unset.")]


def read_page_option(pages: str | None) -> Pages:
    """The pages that `--pages` means, all if unset. Raises StartError when it cannot be read."""
    try:
        return Pages(read_spans(pages) if pages is not None else ())
    except ValueError as error:
        raise StartError(f"--pages {pages!r}: {error}") from None


def caption(
    settings: Settings,
    command: Sweep,
    length: Annotated[Literal["short", "normal", "long"], typer.Option(help="How much to say.")] = "normal",
    pages: PageOption = None,
) -> None:
    """Say what pictures, or the pages of PDFs, show."""
    sweep(settings, command, "caption", {"length": length, **_pages(pages)}, _text)


def ocr(
    settings: Settings,
    command: Sweep,
    lines: Annotated[
        bool, typer.Option("--lines", help="List lines too, with boxes where the model gives them; see --json.")
    ] = False,
    pages: PageOption = None,
) -> None:
    """Write out the text in pictures, or in the pages of PDFs."""
    sweep(settings, command, "ocr", {**({"lines": "true"} if lines else {}), **_pages(pages)}, _text)


def describe(
    settings: Settings,
    command: Sweep,
    box: Annotated[str, typer.Option(help="x1,y1,x2,y2 in pixels of the upright picture.", show_default=False)],
) -> None:
    """Say what is inside a box of pictures."""
    sweep(settings, command, "describe", {"box": box}, _text)


def locate(
    settings: Settings,
    command: Sweep,
    target: Annotated[str, typer.Option(help="What to look for, in words.", show_default=False)],
    every: Annotated[bool, typer.Option("--all", help="Every instance, where the model can.")] = False,
    shape: Annotated[Literal["point", "box"], typer.Option(help="What to answer with.")] = "point",
    draw: Annotated[Path | None, typer.Option(help="Write the picture with what was found drawn on it.")] = None,
) -> None:
    """Say where something is in pictures: x, y (or x1, y1, x2, y2) in their own pixels, and how sure the model is."""
    picture = None if draw is None else _one_picture(command.images)
    fields = {"target": target, "all": str(every).lower(), "shape": shape}
    results = sweep(settings, command, "locate", fields, _places)
    if draw is not None and picture is not None:
        for result in results:
            _draw(settings, picture, _instances(result), draw)


def _pages(pages: str | None) -> dict[str, str]:
    """The form's field for the pages. Raises StartError when they cannot be read."""
    read_page_option(pages)
    return {} if pages is None else {"pages": pages}


def _text(result: Result) -> str:
    match result:
        case {"pages": [_, _, *_] as pages}:
            return "\n\n".join(_page(page) for page in pages)
        case _:
            return str(result.get("text", ""))


def _page(page: object) -> str:
    match page:
        case {"page": int(number), "text": str(text)}:
            return f"page {number}:\n{text}"
        case _:
            return ""


def _places(result: Result) -> str:
    lines = []
    for instance in _instances(result):
        match instance:
            case {"box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, "confidence": float(sure)}:
                lines.append(f"{x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f} {sure:.2f}")
            case {"point": {"x": x, "y": y}, "confidence": float(sure)}:
                lines.append(f"{x:.1f} {y:.1f} {sure:.2f}")
    return "\n".join(lines)


def _instances(result: Result) -> list[object]:
    found = result.get("instances")
    return found if isinstance(found, list) else []


def _one_picture(given: list[str]) -> str:
    """The only picture. Raises StartError when there are several, or none that can be drawn on."""
    names = name_pictures(given)
    if len(names) != 1 or is_url(names[0]) or names[0] == STANDARD_INPUT:
        raise StartError("--draw needs exactly one picture, a file")
    return names[0]


def _draw(settings: Settings, name: str, instances: list[object], out: Path) -> None:
    """Write the upright picture with each place marked. Raises StartError when `out` cannot be written."""
    # Imported here: no other command needs it.
    from PIL import Image

    from onsight.media.marks import draw_marks

    opened = asyncio.run(_opened(settings, read_picture(name)))
    picture = Image.frombytes("RGB", (opened.width, opened.height), opened.pixels)
    draw_marks(picture, [place for instance in instances if (place := _place(instance)) is not None])
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise StartError(f"{out} cannot be written: {error}") from None


async def _opened(settings: Settings, data: bytes) -> Picture:
    """The picture as the model saw it."""
    from onsight.media.door import MediaDoor
    from onsight.serve import media_limits

    door = MediaDoor(media_limits(settings))
    try:
        (picture,) = await door.open([ImageRef(data)])
        return picture
    finally:
        door.close()


def _place(instance: object) -> Point | Box | None:
    match instance:
        case {"box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}}:
            return Box(x1, y1, x2, y2)
        case {"point": {"x": x, "y": y}}:
            return Point(x, y)
    return None
