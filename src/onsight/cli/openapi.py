"""`onsight openapi`: write the API's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def openapi(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; '-' is standard output.")] = Path(
        "openapi.json"
    ),
) -> None:
    """Write the OpenAPI description of every route to a file."""
    from onsight.config import load_settings
    from onsight.serve import assemble

    site = assemble(load_settings({"engine": "fake"}, environment={}))
    text = json.dumps(site.app.openapi(), indent=2) + "\n"
    if str(out) == "-":
        typer.echo(text, nl=False)
    else:
        out.write_text(text, "utf-8")
        typer.echo(f"wrote {out}", err=True)
