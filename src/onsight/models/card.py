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
from types import MappingProxyType
from typing import Literal, get_args

from onsight.core.errors import StartError
from onsight.core.frames import FrameRule, Spread
from onsight.core.geometry import Convention
from onsight.models.hub import adapter_base, locate_base

Capability = Literal["chat", "tools", "caption", "ocr", "locate", "describe", "embed", "video"]


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """Bounds on the area (px) of the picture that the model sees; None leaves the checkpoint's own bound."""

    min_pixels: int | None = None
    max_pixels: int | None = None


Notation = Literal["pair", "click", "points", "boxes"]
"""How a model writes places: (x, y); {"x": , "y": }; [{"point_2d": [x, y]}]; [{"bbox_2d": [x1, y1, x2, y2]}]."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked. `text`: with {target}, or with {x1}, {y1}, {x2} and {y2}, where a request's own values go.

    `notation`: how it writes the places that it answers with, None where it answers in words. `schema`: JSON Schema
    text that its answer is held to, None for a model that does not answer in JSON.
    """

    text: str
    notation: Notation | None = None
    schema: str | None = None

    @property
    def names_box(self) -> bool:
        """Whether it asks about a box of the whole picture; otherwise the box has to be cut out and shown alone."""
        return "{x1}" in self.text


PROMPTS: Mapping[str, Capability] = MappingProxyType(
    {
        "caption": "caption",
        "caption_short": "caption",
        "caption_long": "caption",
        "ocr": "ocr",
        "ocr_lines": "ocr",
        "locate": "locate",
        "locate_all": "locate",
        "locate_box": "locate",
        "locate_all_boxes": "locate",
        "describe": "describe",
    }
)
"""Every prompt that a card may have, and the task that it belongs to."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """How a family is sampled when a request does not say; None leaves it to the server."""

    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of one model or family. What follows from a checkpoint's own files (context, sizes) is not here.

    `family`: the module of `torch_engine/families` that runs it. `models`: glob patterns of Hub ids that the card
    is for; `published`: those that there are, to choose from.
    `architectures`: names in config.json's `architectures` that it covers when no id matches.
    `replaces_code`: its checkpoints name code of their own, which our family stands in for and which is never run.
    `capabilities`: the tasks it was made for; a missing task is refused as Unsupported.
    `convention`: the space in which its answers give coordinates; None when it was not trained to point.
    `prompts`: name (one of `PROMPTS`) -> prompt; a plain text in TOML is a prompt without places.
    `pixels`: task name -> budget ("chat" is every task's default).
    `defaults`: how chat is sampled unless a request says otherwise.
    `frames`: how it looks at videos; None when it was never shown any. With it comes the capability "video".
    `sees`: whether it is shown pictures at all; False for a GGUF file without the part that sees.
    `languages`: the only ones that it reads ("en"); empty where nobody says so.
    """

    name: str
    title: str
    family: str
    licence: str
    description: str
    capabilities: tuple[Capability, ...]
    models: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    replaces_code: bool = False
    convention: Convention | None = None
    prompts: Mapping[str, Prompt] | None = None
    pixels: Mapping[str, PixelBudget] | None = None
    defaults: Defaults = Defaults()
    frames: FrameRule | None = None
    sees: bool = True
    languages: tuple[str, ...] = ()

    def budget(self, task: str) -> PixelBudget:
        """The pixel budget of `task`, else that of chat, else none."""
        pixels = self.pixels or {}
        return pixels.get(task, pixels.get("chat", PixelBudget()))

    def prompt(self, name: str) -> Prompt | None:
        """The prompt called `name`, if it was made for that."""
        return (self.prompts or {}).get(name)

    @property
    def notations(self) -> tuple[Notation, ...]:
        """Every way in which its prompts make it write places."""
        found = (prompt.notation for prompt in (self.prompts or {}).values())
        return tuple(dict.fromkeys(notation for notation in found if notation is not None))


def read_card(name: str, text: str) -> ModelCard:
    """Build a card from TOML text; `name` is the file's stem.

    Raises ValueError for prompts or words that mean nothing, TypeError for an unknown key, so that no typo is ignored.
    """
    table = tomllib.loads(text)
    pixels = {task: PixelBudget(**bounds) for task, bounds in table.pop("pixels", {}).items()}
    convention = table.pop("convention", None)
    if convention is not None and convention not in get_args(Convention):
        raise ValueError(f"card {name}: convention {convention!r} is not one of {get_args(Convention)}")
    frames = _frames(name, table.pop("frames", None))
    capabilities = (*table.pop("capabilities"), *(("video",) if frames else ()))
    unknown = sorted(set(capabilities) - set(get_args(Capability)))
    if unknown:
        raise ValueError(f"card {name}: unknown capabilities {unknown}")
    prompts = {prompt: _prompt(name, prompt, entry) for prompt, entry in table.pop("prompts", {}).items()}
    _check_prompts(name, prompts, capabilities, convention)
    return ModelCard(
        name=name,
        capabilities=capabilities,
        convention=convention,
        pixels=pixels,
        frames=frames,
        prompts=prompts,
        defaults=Defaults(**table.pop("defaults", {})),
        models=tuple(table.pop("models", ())),
        published=tuple(table.pop("published", ())),
        languages=tuple(table.pop("languages", ())),
        architectures=tuple(table.pop("architectures", ())),
        **table,
    )


def _frames(name: str, table: dict[str, object] | None) -> FrameRule | None:
    if table is None:
        return None
    if table.get("spread") not in get_args(Spread):
        raise ValueError(f"card {name}: frames.spread {table.get('spread')!r} is not one of {get_args(Spread)}")
    return FrameRule(**table)  # type: ignore[arg-type]  # as with the card's other tables: a wrong key is an error


def _prompt(card: str, name: str, entry: str | dict[str, str]) -> Prompt:
    """One entry of a card's [prompts]. Raises ValueError for an unknown notation, or a schema that is no JSON."""
    prompt = Prompt(entry) if isinstance(entry, str) else Prompt(**entry)  # type: ignore[arg-type]
    if prompt.notation is not None and prompt.notation not in get_args(Notation):
        raise ValueError(f"card {card}: notation {prompt.notation!r} of {name} is not one of {get_args(Notation)}")
    if prompt.schema is not None:
        json.loads(prompt.schema)
    return prompt


def _check_prompts(
    card: str, prompts: Mapping[str, Prompt], capabilities: tuple[Capability, ...], convention: Convention | None
) -> None:
    """Raises ValueError for prompts that the tasks could not use."""
    for name, prompt in prompts.items():
        if PROMPTS.get(name) not in capabilities:
            raise ValueError(f"card {card}: prompt {name} belongs to none of its capabilities {capabilities}")
        if (PROMPTS[name] == "locate" or name == "ocr_lines") != (prompt.notation is not None):
            raise ValueError(f"card {card}: prompts that locate need a notation, and no others; {name} is wrong")
        # The size that the model sees is known only once the prompt is written, so a box in it cannot depend on that.
        if (prompt.notation and convention is None) or (prompt.names_box and convention in (None, "resized_pixels")):
            raise ValueError(f"card {card}: prompt {name} speaks of places, which needs another convention")
    for capability in set(capabilities) & set(PROMPTS.values()):
        if capability not in prompts:
            raise ValueError(f"card {card}: it can {capability} but has no prompt of that name")


@cache
def cards() -> tuple[ModelCard, ...]:
    """Every card in the package, by file name."""
    folder = resources.files("onsight.models") / "cards"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return tuple(read_card(entry.name.removesuffix(".toml"), entry.read_text("utf-8")) for entry in files)


def card_of_name(model: str) -> ModelCard | None:
    """The card for a Hub id by its pattern, or for a card's own name; None when no card is for it."""
    for card in cards():
        if model == card.name or any(fnmatch.fnmatchcase(model.lower(), pattern.lower()) for pattern in card.models):
            return card
    return None


def find_card(model: str, folder: Path) -> ModelCard:
    """The card for `model` (a Hub id, a folder or a bundled name) whose files lie in `folder`.

    A pattern on the id wins over the architecture in config.json; an adapter without one has its base model's
    card. Raises StartError when no card fits.
    """
    base = None if (folder / "config.json").exists() else adapter_base(folder)
    for name in (model, base or model):
        named = card_of_name(name)
        if named is not None:
            return named
    architectures = _architectures(folder if base is None else locate_base(folder, base))
    for card in cards():
        if set(card.architectures) & set(architectures):
            return card
    known = ", ".join(f"{card.title} ({', '.join(card.architectures)})" for card in cards() if card.architectures)
    raise StartError(
        f"{model}: config.json names the architectures {architectures}, which no family here runs; known are {known}"
    )


def _architectures(folder: Path) -> list[str]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StartError(f"{folder} holds no config.json, so it is no model folder") from None
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{path} cannot be read as JSON: {error}") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
