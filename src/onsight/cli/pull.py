"""`onsight pull`: bring a model's files onto this machine, so that it can be served without a network."""

from __future__ import annotations

from glob import escape
from pathlib import Path

import typer

from onsight.config import Settings


def pull(settings: Settings) -> None:
    """Download a model, or what is missing of it, and print where its files are; an adapter's base comes along, and a
    GGUF file's mmproj."""
    # Imported here: the Hub's client takes a while to import, which other commands should not pay.
    from onsight.models.gguf import is_mllama, names_gguf

    gguf = names_gguf(settings.model) and not is_mllama(settings.model)
    title, places = _gguf(settings) if gguf else _folders(settings)
    files = [file for each in places for file in ([each] if each.is_file() else each.iterdir()) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{settings.model} ({title}) is on this machine: {size / (1 << 20):,.1f} MiB", err=True)
    for each in places:
        typer.echo(each)


def _folders(settings: Settings) -> tuple[str, list[Path]]:
    """The model's title and the folders that hold it and its base."""
    from onsight.models.card import find_card
    from onsight.models.hub import adapter_base, locate_base, locate_model

    folder = locate_model(settings.model, settings.revision)
    # A family that does not run here is said now, not when a server starts from these files.
    card = find_card(settings.model, folder)
    base = adapter_base(folder)
    return card.title, [folder] if base is None else [folder, locate_base(folder, base)]


def _gguf(settings: Settings) -> tuple[str, list[Path]]:
    """The model's title, its file or files and that of its mmproj; what llama.cpp would refuse is said now."""
    from onsight.models.gguf import card_of_gguf, locate_gguf, read_gguf

    model = read_gguf(*locate_gguf(settings.model, settings.mmproj, settings.revision))
    title = card_of_gguf(settings.model, model).title
    parts = sorted(model.path.parent.glob(escape(model.path.name).replace("-00001-of-", "-*-of-")))
    return title, parts if model.mmproj is None else [*parts, model.mmproj]
