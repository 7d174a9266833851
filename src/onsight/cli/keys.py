"""`onsight keys`: make keys, list them, take them back."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, cast

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from onsight.api.keys import SCOPES, Scope, new_key, read_keys, write_keys
from onsight.config import Settings
from onsight.core.errors import StartError

_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}


def add(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Who the key is for: letters, digits, '.', '_', '@' and '-'.")],
    scopes: Annotated[str, typer.Option(help="What it opens, with commas: chat, embed, admin.")] = "chat,embed",
    lasts: Annotated[str | None, typer.Option(help="How long: 12h, 30d, 8w; for ever if unset.")] = None,
) -> None:
    """Make a key and print it once; the file keeps its digest alone. A running server knows it within a second."""
    file = _file(settings)
    keys = read_keys(file)
    if any(key.name == name for key in keys):
        raise StartError(f"there is a key named {name!r} already; revoke it first, or choose another name")
    try:
        text, key = new_key(name, _scopes(scopes), _end(lasts))
    except ValueError:
        raise StartError(f"a key's name has 1 to 64 letters, digits, '.', '_', '@' or '-'; got {name!r}") from None
    write_keys(file, (*keys, key))
    typer.echo(text)
    typer.echo(f"the key of {name}, for {', '.join(key.scopes)}; it is not shown again", err=True)


def list_keys(settings: Settings) -> None:
    """Show the keys' names, what they open and until when."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "opens", "made", "ends", "state"):
        table.add_column(column, no_wrap=column == "name")
    for key in read_keys(_file(settings)):
        ends = "never" if key.expires is None else _day(key.expires)
        table.add_row(key.name, " ".join(key.scopes), _day(key.created), ends, "expired" if key.expired else "good")
    Console().print(table)


def revoke(settings: Settings, name: Annotated[str, typer.Argument(help="Whose key.")]) -> None:
    """Take a key back; a running server refuses it within a second."""
    file = _file(settings)
    keys = read_keys(file)
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise StartError(f"{file} has no key named {name!r}; it has {known}")
    write_keys(file, left)
    typer.echo(f"{name} is out", err=True)


def _file(settings: Settings) -> Path:
    if settings.keys_file is None:
        raise StartError("no key file is named: pass --keys-file FILE or set ONSIGHT_KEYS_FILE, as for `onsight serve`")
    return settings.keys_file


def _scopes(text: str) -> tuple[Scope, ...]:
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in SCOPES:
            raise StartError(f"--scopes {text}: {name!r} is none of {', '.join(SCOPES)}")
    return cast(tuple[Scope, ...], tuple(asked))


def _end(lasts: str | None) -> datetime | None:
    if lasts is None:
        return None
    found = _LIFETIME.fullmatch(lasts)
    if found is None:
        raise StartError(f"--lasts {lasts}: write a number and h, d or w, such as 12h, 30d or 8w")
    return datetime.now(UTC).replace(microsecond=0) + timedelta(hours=int(found[1]) * _HOURS[found[2]])


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
