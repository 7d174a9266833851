"""What a model takes in memory, worked out by its family itself: from a loaded one, or from files without loading."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from onsight.core.engine import PICTURE_PX, MemoryUse
from onsight.core.errors import StartError
from onsight.core.messages import Image
from onsight.engines.torch_engine import kv_cache, loading
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.gpu_bits import require_package
from onsight.engines.torch_engine.quantize import ON_GPU, Scheme, int8_is_exact
from onsight.engines.torch_engine.settings import QuantizeChoice, TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import ModelCard

log = logging.getLogger(__name__)

_SHARE_OF_FREE = 0.7
"""Weights past this share of the free memory would leave too little for keys, values and pictures."""


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint's facts: `tensors` stored, all accounted for; the `dtype`, or few bits, and `device` to run with."""

    context_tokens: int
    tensors: int
    dtype: str
    device: str
    memory: MemoryUse


def pick_scheme(folder: Path, settings: TorchSettings, device: torch.device, dtype: torch.dtype) -> Scheme | None:
    """The few bits in which the decoder's products are to stand; None for `dtype`.

    Raises StartError where what was asked for cannot be had.
    """
    saved, choice = loading.saved_scheme(folder), settings.quantize
    if saved is not None and choice not in ("auto", saved):
        raise StartError(f"quantize is {choice}, but {folder} holds {saved} weights: leave it out, or give the model")
    wanted = saved or _choice(folder, choice, device, dtype)
    if wanted is not None and saved is None and device.type == "cuda":
        require_package()
        return ON_GPU[wanted]
    if wanted is not None and device.type != "cpu":
        raise StartError(
            f"{wanted} weights {'are for CPUs and CUDA' if saved is None else 'that are saved are for CPUs'}, and the"
            f" device is {device.type}: choose --device cpu, or the plain model with --quantize none"
        )
    if wanted == "int8" and not int8_is_exact():
        raise StartError("int8 weights need a processor that adds up bytes (VNNI), which this is not: choose int4")
    return wanted


def _choice(folder: Path, choice: QuantizeChoice, device: torch.device, dtype: torch.dtype) -> Scheme | None:
    """`choice` for plain weights."""
    if choice != "auto":
        return None if choice == "none" else choice
    needed, free = loading.weight_bytes(folder, dtype), kv_cache.free_bytes(device)
    if device.type != "cpu" or needed <= _SHARE_OF_FREE * free:
        return None
    log.warning(
        "%s: the weights would take %.2f GiB of %.2f GiB that are free, so they are read into 4 bits; what that costs"
        " stands in docs/results/int4.md, and --quantize none leaves them whole",
        folder,
        needed / 2**30,
        free / 2**30,
    )
    return "int4"


def memory_use(family: Family, folder: Path, dtype: torch.dtype, scheme: Scheme | None) -> MemoryUse:
    """What `family`, loaded from `folder`, takes when it runs in `dtype`, its products in `scheme`."""
    shape = family.decoder.shape
    width, height = PICTURE_PX
    # Plans ask for a picture's size alone, so none is drawn.
    tokens = len(family.plan(Image(b"", width, height, "")).token_ids)
    each = kv_cache.token_bytes(shape, dtype)
    return MemoryUse(
        weights_bytes=loading.weight_bytes(folder, dtype, scheme),
        token_bytes=each,
        picture_tokens=tokens,
        picture_bytes=tokens * each + kv_cache.beside_bytes(shape, dtype),
    )


def require_room(folder: Path, device: torch.device, dtype: torch.dtype, scheme: Scheme | None = None) -> None:
    """Refuse weights that cannot fit before any memory is taken, for on a CPU the system would end the process."""
    needed, free = loading.weight_bytes(folder, dtype, scheme), kv_cache.free_bytes(device)
    if needed > free:
        raise StartError(
            f"{folder}: the weights take {needed / 2**30:.2f} GiB as {scheme or _name(dtype)}, but"
            f" {device.type} has {free / 2**30:.2f} GiB free: choose a smaller model or number format; a model is never"
            " spread over several devices"
        )


def survey(folder: Path, card: ModelCard, settings: TorchSettings) -> Survey:
    """Check a checkpoint and say what it would take, without reading its weights. Raises StartError."""
    loading.check_folder(folder, card.replaces_code)
    device = loading.pick_device(settings.device)
    dtype = loading.pick_dtype(settings.dtype, device)
    scheme = pick_scheme(folder, settings, device, dtype)
    outline = loading.Checkpoint(folder, torch.device("meta"), dtype, scheme=scheme)
    family = load_family(card.family, outline, Vocabulary(folder))
    return Survey(
        context_tokens=family.context_tokens,
        tensors=len(loading.stored_tensors(folder)),
        dtype=scheme or _name(dtype),
        device=device.type,
        memory=memory_use(family, folder, dtype, scheme),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
