"""Which models are loaded, and under which names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onsight.core.engine import ChatEngine
from onsight.core.errors import UnknownModel
from onsight.models.card import ModelCard


@dataclass(frozen=True, slots=True)
class Loaded:
    """One loaded model: `names[0]` is the one that answers carry, the others are aliases. `created`: Unix time, s."""

    names: tuple[str, ...]
    card: ModelCard
    engine: ChatEngine
    created: int

    @property
    def name(self) -> str:
        return self.names[0]


class Roster:
    """The loaded models by name; a request without a name means the only one."""

    def __init__(self, models: Iterable[Loaded]) -> None:
        self.models: tuple[Loaded, ...] = tuple(models)
        self._by_name: Mapping[str, Loaded] = {name: loaded for loaded in self.models for name in loaded.names}

    def find(self, name: str | None) -> Loaded:
        """The model called `name`, or the only one when `name` is None. Raises UnknownModel."""
        if name is None:
            if len(self.models) == 1:
                return self.models[0]
            raise UnknownModel(f"name a model; loaded are {self._names()}", param="model")
        loaded = self._by_name.get(name)
        if loaded is None:
            raise UnknownModel(f"model {name!r} is not loaded; loaded are {self._names()}", param="model")
        return loaded

    def _names(self) -> str:
        return ", ".join(repr(name) for name in self._by_name)
