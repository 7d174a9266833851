"""GET /v1/models: which models are loaded, under which names, and what their cards say."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from onsight.api.services import Services
from onsight.tasks.roster import Loaded


class ModelObject(BaseModel):
    """One name of a loaded model; `root` is the name in answers. `context_tokens` is null until it is loaded."""

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
    context_tokens: int | None


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
        return _model(model, self._roster.find(model))


def _model(name: str, loaded: Loaded) -> ModelObject:
    card = loaded.card
    usable = loaded.engine.status().state == "ready"
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
        context_tokens=loaded.engine.context_tokens if usable else None,
    )
