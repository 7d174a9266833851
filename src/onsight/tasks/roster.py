"""Which models are loaded, what they are for, and under which names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from onsight.core.engine import ChatEngine, EmbedEngine
from onsight.core.errors import UnknownModel, Unsupported
from onsight.models.card import ModelCard

AnyEngine = TypeVar("AnyEngine", bound=ChatEngine | EmbedEngine, covariant=True)


@dataclass(frozen=True)  # Python 3.11 cannot make objects of an alias like `Loaded` of a frozen class with slots
class LoadedModel(Generic[AnyEngine]):
    """One loaded model: `names[0]` is the one that answers carry, the others are aliases. `created`: Unix time, s.

    `runner`: the kind of engine that runs it, as `--engine` calls it.
    """

    names: tuple[str, ...]
    card: ModelCard
    engine: AnyEngine
    created: int
    runner: str = "torch"

    @property
    def name(self) -> str:
        return self.names[0]


Loaded = LoadedModel[ChatEngine]
"""A model that answers in text."""

LoadedEmbedder = LoadedModel[EmbedEngine]
"""A model that makes vectors."""

AnyLoaded = LoadedModel[ChatEngine | EmbedEngine]


class Roster:
    """The loaded models by name; a request without a name means the only one that can do what it asks for."""

    def __init__(self, models: Iterable[Loaded] = (), embedders: Iterable[LoadedEmbedder] = ()) -> None:
        self.chats: tuple[Loaded, ...] = tuple(models)
        self.embedders: tuple[LoadedEmbedder, ...] = tuple(embedders)
        self.models: tuple[AnyLoaded, ...] = (*self.chats, *self.embedders)
        self._chats: Mapping[str, Loaded] = _by_name(self.chats)
        self._embedders: Mapping[str, LoadedEmbedder] = _by_name(self.embedders)

    def find(self, name: str | None) -> Loaded:
        """The model called `name` that answers in text, or the only one when `name` is None.

        Raises UnknownModel, or Unsupported for one that makes vectors.
        """
        if name in self._embedders:
            raise Unsupported(
                f"model {name!r} makes vectors and does not answer in text: POST /v1/embeddings, /v1/score or"
                f" /v1/rerank{_or_name(self._chats)}",
                param="model",
            )
        if name is None and not self._chats:
            raise Unsupported(f"no loaded model answers in text; loaded are {self._names()}", param="model")
        return self._found(name, self._chats)

    def find_embedder(self, name: str | None) -> LoadedEmbedder:
        """The model called `name` that makes vectors, or the only one when `name` is None.

        Raises UnknownModel, or Unsupported for one that answers in text.
        """
        if name in self._chats:
            raise Unsupported(
                f"model {name!r} answers in text and makes no vectors{_or_name(self._embedders)}", param="model"
            )
        if name is None and not self._embedders:
            raise Unsupported(
                f"no loaded model makes vectors; loaded are {self._names()}. Start the server with one, like"
                " `onsight serve CHAT_MODEL EMBED_MODEL`",
                param="model",
            )
        return self._found(name, self._embedders)

    def find_any(self, name: str) -> AnyLoaded:
        """The model called `name`, whatever it does. Raises UnknownModel."""
        return self._found(name, {**self._chats, **self._embedders})

    def _found(self, name: str | None, among: Mapping[str, LoadedModel[AnyEngine]]) -> LoadedModel[AnyEngine]:
        if name is None:
            first = next(iter(among.values()))
            if all(one is first for one in among.values()):
                return first
            raise UnknownModel(f"name a model; loaded are {self._names()}", param="model")
        loaded = among.get(name)
        if loaded is None:
            raise UnknownModel(f"model {name!r} is not loaded; loaded are {self._names()}", param="model")
        return loaded

    def _names(self) -> str:
        return ", ".join(repr(name) for loaded in self.models for name in loaded.names)


def _by_name(models: Iterable[LoadedModel[AnyEngine]]) -> Mapping[str, LoadedModel[AnyEngine]]:
    return {name: loaded for loaded in models for name in loaded.names}


def _or_name(others: Mapping[str, object]) -> str:
    """What could be named instead, if anything."""
    return f"; name {' or '.join(map(repr, others))}" if others else ""
