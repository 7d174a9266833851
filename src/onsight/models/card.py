"""A model's card: what a family can do and how to speak with it, read from `cards/*.toml`."""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from onsight.core.errors import StartError
from onsight.core.geometry import Convention
from onsight.models.hub import adapter_base, locate_base

Capability = Literal["chat", "tools", "caption", "ocr", "locate", "describe", "embed"]


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """Bounds on the area (px) of the picture that the model sees; None leaves the checkpoint's own bound."""

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of one model or family.

    `family`: the module of `torch_engine/families` that runs it. `models`: glob patterns of Hub ids that the card
    is for.
    `architectures`: names in config.json's `architectures` that it covers when no id matches.
    `replaces_code`: its checkpoints name code of their own, which our family stands in for and which is never run.
    `capabilities`: the tasks it was made for; a missing task is refused as Unsupported.
    `convention`: the space in which its answers give coordinates; None when it was not trained to point.
    `prompts`: task name -> prompt text. `pixels`: task name -> budget ("chat" is every task's default).
    """

    name: str
    title: str
    family: str
    licence: str
    description: str
    capabilities: tuple[Capability, ...]
    models: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    replaces_code: bool = False
    convention: Convention | None = None
    prompts: Mapping[str, str] | None = None
    pixels: Mapping[str, PixelBudget] | None = None

    def budget(self, task: str) -> PixelBudget:
        """The pixel budget of `task`, else that of chat, else none."""
        pixels = self.pixels or {}
        return pixels.get(task, pixels.get("chat", PixelBudget()))


def _read(name: str, text: str) -> ModelCard:
    """Build a card from TOML text; `name` is the file's stem. An unknown key is an error, so that no typo is
    ignored."""
    table = tomllib.loads(text)
    pixels = {task: PixelBudget(**bounds) for task, bounds in table.pop("pixels", {}).items()}
    convention = table.pop("convention", None)
    if convention is not None and convention not in get_args(Convention):
        raise ValueError(f"card {name}: convention {convention!r} is not one of {get_args(Convention)}")
    capabilities = tuple(table.pop("capabilities"))
    unknown = sorted(set(capabilities) - set(get_args(Capability)))
    if unknown:
        raise ValueError(f"card {name}: unknown capabilities {unknown}")
    return ModelCard(
        name=name,
        capabilities=capabilities,
        convention=convention,
        pixels=pixels,
        prompts=table.pop("prompts", {}),
        models=tuple(table.pop("models", ())),
        architectures=tuple(table.pop("architectures", ())),
        **table,
    )


@cache
def cards() -> tuple[ModelCard, ...]:
    """Every card in the package, by file name."""
    folder = resources.files("onsight.models") / "cards"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return tuple(_read(entry.name.removesuffix(".toml"), entry.read_text("utf-8")) for entry in files)


def find_card(model: str, folder: Path) -> ModelCard:
    """The card for `model` (a Hub id, a folder or "peek") whose files lie in `folder`.

    A pattern on the id wins over the architecture in config.json; an adapter without one has its base model's
    card. Raises StartError when no card fits.
    """
    base = None if (folder / "config.json").exists() else adapter_base(folder)
    for name in (model, base or model):
        for card in cards():
            if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in card.models):
                return card
    architectures = _architectures(folder if base is None else locate_base(folder, base))
    for card in cards():
        if set(card.architectures) & set(architectures):
            return card
    known = sorted({architecture for card in cards() for architecture in card.architectures})
    raise StartError(
        f"{model}: no card knows the architectures {architectures} of its config.json; known are {', '.join(known)}"
    )


def _architectures(folder: Path) -> list[str]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StartError(f"{folder} holds no config.json, so it is no model folder") from None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read as JSON: {error}") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
