"""The `onsight` command."""

from __future__ import annotations

import sys

import typer

from onsight import __version__
from onsight.cli.chat import chat
from onsight.cli.doctor import doctor
from onsight.cli.embed import embed
from onsight.cli.keys import add, list_keys, revoke
from onsight.cli.models import models
from onsight.cli.openapi import openapi
from onsight.cli.options import with_settings
from onsight.cli.pull import pull
from onsight.cli.quantize import quantize
from onsight.cli.search import search
from onsight.cli.serve import serve
from onsight.cli.tasks import caption, describe, locate, ocr
from onsight.cli.verify import verify
from onsight.core.errors import OnsightError

commands = typer.Typer(
    name="onsight",
    help="Show images to open vision-language models on hardware you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_MODEL = ("model", "revision", "device", "dtype")
_RUN = (*_MODEL, "quantize", "max_model_len", "threads", "media_remote", "api_key")
_TASK = (*_RUN, "max_num_seqs", "media_max_pixels", "media_max_images", "media_pdf_dpi")
_INDEX = (
    *_MODEL, "threads", "media_max_mb", "media_max_pixels", "media_pdf_dpi", "api_key",
    "qdrant", "qdrant_collection", "qdrant_key",
)  # fmt: skip
"""Options that commands heed besides their own."""

commands.command()(with_settings(serve, arguments=("model", "embed_model")))
commands.command()(with_settings(doctor, arguments=("model", "embed_model")))
commands.command()(with_settings(chat, only=_RUN, arguments=()))
for task in (caption, ocr, locate, describe):
    commands.command()(with_settings(task, only=_TASK, arguments=()))
for of_pages in (embed, search):
    commands.command()(with_settings(of_pages, only=_INDEX, arguments=()))
commands.command()(with_settings(models, only=("revision", "device", "dtype", "quantize", "max_num_seqs")))
commands.command()(with_settings(pull, only=("model", "revision")))
commands.command()(with_settings(verify, only=(*_MODEL, "threads")))
commands.command()(with_settings(quantize, only=("model", "revision", "quantize")))
commands.command()(openapi)
keys = typer.Typer(help="Make keys, list them, take them back.", no_args_is_help=True)
for name, of_keys in (("add", add), ("list", list_keys), ("revoke", revoke)):
    keys.command(name)(with_settings(of_keys, only=("keys_file",), arguments=()))
commands.add_typer(keys, name="keys")


@commands.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"onsight {__version__}")
        raise typer.Exit


def app() -> None:
    """Run the command; an error of ours is one sentence on standard error and exit code 2."""
    try:
        commands()
    except OnsightError as error:
        print(f"onsight: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output has left (`onsight chat ... | head`); that is no error.
        sys.stderr.close()
        sys.exit(0)
