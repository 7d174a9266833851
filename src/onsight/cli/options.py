"""Command-line flags made out of the settings, so that no option is declared twice."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from onsight.config import PREFIX, Settings, load_settings

Command = Callable[..., None]


def with_settings(command: Command, only: Sequence[str] = (), arguments: Sequence[str] = ("model",)) -> Command:
    """`command(settings, ...)` as a typer command whose flags are the fields of Settings (all, or those in `only`).

    The fields `arguments` are given by their places and have no flags. `--config FILE` is added. Where the command
    takes a dataclass, its fields are flags too.
    """
    groups: dict[str, tuple[type, list[str]]] = {}
    own: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            fields = _fields(kind)
            groups[name] = (kind, [field.name for field in fields])
            own += fields
        elif name != "settings":
            own.append(parameter)
    names = [name for name in Settings.model_fields if not only or name in only]
    parameters = [_parameter(name, Settings.model_fields[name], as_argument=name in arguments) for name in names]

    @wraps(command)
    def run(config: Path | None = None, **given: object) -> None:
        flags = {name: value for name in names if (value := given.pop(name)) not in (None, [])}
        for group, (kind, fields) in groups.items():
            given[group] = kind(**{field: given.pop(field) for field in fields})
        command(load_settings(flags, file=config), **given)

    config = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, typer.Option(help="Settings file (TOML).")],
    )
    everything = sorted([*own, *parameters, config], key=lambda parameter: parameter.kind)
    signature = inspect.Signature([parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in everything])
    run.__signature__ = signature  # type: ignore[attr-defined]  # typer reads the command's signature
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
    return run


def _fields(group: type) -> list[inspect.Parameter]:
    """The typer parameters that a dataclass stands for."""
    return list(inspect.signature(group, eval_str=True).parameters.values())


def _parameter(name: str, field: FieldInfo, *, as_argument: bool) -> inspect.Parameter:
    """The typer parameter for one field; its default is None, so that only what was given counts as a flag."""
    default = field.default
    many = isinstance(default, tuple)
    shown = ",".join(str(item) for item in default) if many else default
    facts = f"default: {'none' if shown in (None, '') else shown}; {PREFIX}{name.upper()}"
    help_text = f"{field.description} ({facts})"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    metavar = "|".join(choices) or None
    flag = "--" + name.replace("_", "-")
    information: object
    if as_argument:
        information = typer.Argument(help=help_text, show_default=False)
    else:
        names = (f"{flag}/--{_opposite(name)}",) if _plain(field.annotation) is bool else (flag,)
        information = typer.Option(*names, help=help_text, show_default=False, metavar=metavar)
    kind = list[str] if many else _plain(field.annotation) | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, information]
    )


def _opposite(name: str) -> str:
    return name.removeprefix("no_") if name.startswith("no_") else "no-" + name.replace("_", "-")


def _plain(annotation: object) -> type:
    """The type that the flag's text is read as: a choice is a text here and checked by Settings."""
    for candidate in (annotation, *get_args(annotation)):
        if candidate in (int, float, bool, str):
            return cast(type, candidate)
        if get_origin(candidate) is Literal:
            return str
    return str
