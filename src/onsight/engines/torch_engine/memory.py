"""What a model takes in memory, worked out by its family itself: from a loaded one, or from files without loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from onsight.core.engine import PICTURE_PX, MemoryUse
from onsight.core.errors import StartError
from onsight.core.messages import Image
from onsight.engines.torch_engine import kv_cache, loading
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import ModelCard


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint's facts: `tensors` stored, all accounted for; `dtype` and `device` are what it would run with."""

    context_tokens: int
    tensors: int
    dtype: str
    device: str
    memory: MemoryUse


def memory_use(family: Family, folder: Path, dtype: torch.dtype) -> MemoryUse:
    """What `family`, loaded from `folder`, takes when it runs in `dtype`."""
    shape = family.decoder.shape
    width, height = PICTURE_PX
    # Plans ask for a picture's size alone, so none is drawn.
    tokens = len(family.plan(Image(b"", width, height, "")).token_ids)
    each = kv_cache.token_bytes(shape, dtype)
    return MemoryUse(
        weights_bytes=loading.weight_bytes(folder, dtype),
        token_bytes=each,
        picture_tokens=tokens,
        picture_bytes=tokens * each + kv_cache.beside_bytes(shape, dtype),
    )


def require_room(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse weights that cannot fit before any memory is taken, for on a CPU the system would end the process."""
    needed, free = loading.weight_bytes(folder, dtype), kv_cache.free_bytes(device)
    if needed > free:
        raise StartError(
            f"{folder}: the weights take {needed / 2**30:.2f} GiB as {str(dtype).removeprefix('torch.')}, but"
            f" {device.type} has {free / 2**30:.2f} GiB free: choose a smaller model or number format; a model is never"
            " spread over several devices"
        )


def survey(folder: Path, card: ModelCard, settings: TorchSettings) -> Survey:
    """Check a checkpoint and say what it would take, without reading its weights. Raises StartError."""
    loading.check_folder(folder, card.replaces_code)
    device = loading.pick_device(settings.device)
    dtype = loading.pick_dtype(settings.dtype, device)
    family = load_family(card.family, loading.Checkpoint(folder, torch.device("meta"), dtype), Vocabulary(folder))
    return Survey(
        context_tokens=family.context_tokens,
        tensors=len(loading.stored_tensors(folder)),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        memory=memory_use(family, folder, dtype),
    )
