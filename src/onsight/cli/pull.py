"""`onsight pull`: bring a model's files onto this machine, so that it can be served without a network."""

from __future__ import annotations

import typer

from onsight.config import Settings


def pull(settings: Settings) -> None:
    """Download a model, or what is missing of it, and print where its files are; an adapter's base comes along."""
    # Imported here: the Hub's client takes a while to import, which other commands should not pay.
    from onsight.models.card import find_card
    from onsight.models.hub import adapter_base, locate_base, locate_model

    folder = locate_model(settings.model, settings.revision)
    folders = [folder]
    # A family that does not run here is said now, not when a server starts from these files.
    card = find_card(settings.model, folder)
    base = adapter_base(folder)
    if base is not None:
        folders.append(locate_base(folder, base))
    size = sum(path.stat().st_size for each in folders for path in each.iterdir() if path.is_file())
    typer.echo(f"{settings.model} ({card.title}) is on this machine: {size / (1 << 20):,.1f} MiB", err=True)
    for each in folders:
        typer.echo(each)
