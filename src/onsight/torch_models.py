"""The models that the torch engine runs: found, checked and put into the roster, none of them loaded yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onsight.config import MEGABYTE, Settings, let_waiting_threads_sleep
from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.models.card import ModelCard, find_card
from onsight.models.hub import locate_model
from onsight.tasks.roster import Loaded, LoadedEmbedder, Roster

if TYPE_CHECKING:
    from onsight.engines.torch_engine import TorchSettings


@dataclass(frozen=True, slots=True)
class _Found:
    """A model whose files and card are there; not loaded yet."""

    names: tuple[str, ...]
    folder: Path
    card: ModelCard

    @staticmethod
    def of(model: str, revision: str | None, names: tuple[str, ...]) -> _Found:
        folder = locate_model(model, revision)
        return _Found(names or (model,), folder, find_card(model, folder))

    @property
    def chats(self) -> bool:
        return "chat" in self.card.capabilities

    def embedder(self, settings: Settings, progress: Progress | None) -> LoadedEmbedder:
        """The model behind an engine that is not started."""
        from onsight.engines.torch_engine import TorchEmbedEngine

        engine = TorchEmbedEngine(self.folder, self.card, _torch_settings(settings), progress)
        return LoadedEmbedder(self.names, self.card, engine, int(time.time()))


def torch_roster(settings: Settings, progress: Progress | None) -> Roster:
    """One model that chats, one that makes vectors, or both. Raises StartError."""
    models = [_Found.of(settings.model, settings.revision, settings.served_model_name)]
    if settings.embed_model is not None:
        models.append(_embedder(settings, settings.embed_model))
        _check_pair(*models)
    if settings.quantize in ("int4", "int8") and not any(one.chats for one in models):
        raise StartError(
            f"quantize is {settings.quantize}, but {settings.model} makes vectors, which takes whole weights: leave it"
            " out"
        )
    let_waiting_threads_sleep()
    # Imported here: PyTorch takes a second or two, which no other command should pay.
    from onsight.engines.torch_engine import TorchEngine

    now, chosen = int(time.time()), _torch_settings(settings)
    return Roster(
        [
            Loaded(one.names, one.card, TorchEngine(one.folder, one.card, chosen, progress), now)
            for one in models
            if one.chats
        ],
        [one.embedder(settings, progress) for one in models if not one.chats],
    )


def roster_beside(settings: Settings, chat: Loaded, progress: Progress | None) -> Roster:
    """A model that another engine runs, and the one that makes vectors here if one is named. Raises StartError."""
    if settings.embed_model is None:
        return Roster([chat])
    found = _embedder(settings, settings.embed_model)
    _check_vectors(found)
    _check_names(chat.names, found.names)
    let_waiting_threads_sleep()
    return Roster([chat], [found.embedder(settings, progress)])


def _embedder(settings: Settings, model: str) -> _Found:
    return _Found.of(model, settings.embed_revision, settings.served_embed_name)


def _check_pair(model: _Found, beside: _Found) -> None:
    """Raise StartError unless the first chats, the second makes vectors, and no name means both."""
    if not model.chats:
        raise StartError(
            f"{model.names[0]} is no chat model: {model.card.title} can {', '.join(model.card.capabilities)} only;"
            " serve it alone, or name a chat model first"
        )
    _check_vectors(beside)
    _check_names(model.names, beside.names)


def _check_vectors(beside: _Found) -> None:
    if "embed" not in beside.card.capabilities:
        raise StartError(
            f"{beside.names[0]} makes no vectors: {beside.card.title} can {', '.join(beside.card.capabilities)} only;"
            " name an embedding model second"
        )


def _check_names(names: tuple[str, ...], beside: tuple[str, ...]) -> None:
    if both := set(names) & set(beside):
        raise StartError(
            f"both models are called {', '.join(sorted(both))}: name them apart (--served-model-name,"
            " --served-embed-name)"
        )


def _torch_settings(settings: Settings) -> TorchSettings:
    from onsight.engines.torch_engine import TorchSettings

    return TorchSettings(
        device=settings.torch_device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        image_cache_bytes=settings.image_cache_mb * MEGABYTE,
        kv_cache_tokens=settings.kv_cache_tokens,
        threads=settings.threads,
        stall_s=settings.stall_timeout_s,
        max_queue_tokens=settings.max_queue_tokens,
    )
