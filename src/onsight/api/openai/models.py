"""GET /v1/models: which models are loaded, under which names, and what their cards say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from onsight.api.services import Services
from onsight.tasks.roster import AnyLoaded


class PixelsObject(BaseModel):
    """Bounds on the area, in pixels, of the picture that the model sees; null is the checkpoint's own bound."""

    min_pixels: int | None
    max_pixels: int | None


class DefaultsObject(BaseModel):
    """How chat is sampled unless a request says otherwise; null is the server's default."""

    temperature: float | None
    top_p: float | None


class MemoryObject(BaseModel):
    """Bytes that the model takes, beside the working memory of a forward; the picture is one of 1920x1080 px."""

    weights_bytes: int
    token_bytes: int
    picture_tokens: int
    picture_bytes: int


class ModelObject(BaseModel):
    """One name of a loaded model; `root` is the name in answers.

    `context_tokens` is null until it is loaded, and so is `memory`, which an engine without a model never has.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "onsight"
    root: str
    title: str
    description: str
    family: str
    licence: str
    capabilities: list[str]
    convention: str | None = Field(description="The space in which the model itself gives coordinates.")
    pixels: dict[str, PixelsObject] = Field(description="Pixel budgets of the tasks; that of chat is for all others.")
    defaults: DefaultsObject
    context_tokens: int | None
    memory: MemoryObject | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelRoutes:
    """The routes, bound to the roster."""

    def __init__(self, services: Services) -> None:
        self._roster = services.roster

    async def list(self) -> ModelList:
        """Every name of every loaded model."""
        return ModelList(data=[_model(name, loaded) for loaded in self._roster.models for name in loaded.names])

    async def get(self, model: str) -> ModelObject:
        """One model by any of its names."""
        return _model(model, self._roster.find_any(model))


def _model(name: str, loaded: AnyLoaded) -> ModelObject:
    card = loaded.card
    status = loaded.engine.status()
    usable = status.state == "ready"
    return ModelObject(
        id=name,
        created=loaded.created,
        root=loaded.name,
        title=card.title,
        description=card.description,
        family=card.family,
        licence=card.licence,
        capabilities=list(card.capabilities),
        convention=card.convention,
        pixels={task: PixelsObject(**asdict(budget)) for task, budget in (card.pixels or {}).items()},
        defaults=DefaultsObject(**asdict(card.defaults)),
        context_tokens=loaded.engine.context_tokens if usable else None,
        memory=MemoryObject(**asdict(status.memory)) if usable and status.memory else None,
    )
