"""From a folder to a model in memory: files checked, configuration read, every tensor accounted for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.engines.torch_engine.settings import DeviceChoice, DtypeChoice

log = logging.getLogger(__name__)

JsonObject = dict[str, object]

_REMOTE_CODE_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
_FORGETTABLE = (".rotary_emb.inv_freq", ".position_ids")
"""Buffers that old checkpoints store though they are computed, not learned."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that was checked, and how its model is to stand in memory."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    progress: Progress | None = None


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`. Raises StartError when it is missing or something else."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StartError(f"{path.parent} holds no {path.name}, so it is no complete model folder") from None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(table, dict):
        raise StartError(f"{path} holds no JSON object")
    return table


def read_optional_json(path: Path) -> JsonObject:
    """As `read_json`, but a missing file is an empty object."""
    return read_json(path) if path.exists() else {}


def check_folder(folder: Path, replaces_code: bool = False) -> None:
    """Refuse what can never be loaded: no folder, no config.json, remote code, weights that are not safetensors.

    `replaces_code`: the family does without the code that the checkpoint names, so it may name some.
    """
    if not folder.is_dir():
        raise StartError(f"{folder} is no folder")
    read_json(folder / "config.json")
    for name in () if replaces_code else _REMOTE_CODE_FILES:
        if "auto_map" in read_optional_json(folder / name):
            raise StartError(
                f"{folder / name} asks for code that comes with the model (auto_map), which is never run here"
            )
    if not _weight_files(folder):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {', '.join(pickles)}, which can hide code" if pickles else "none"
        raise StartError(f"{folder} must hold its weights as .safetensors files; found {found}")


def pick_device(choice: DeviceChoice) -> torch.device:
    """The device to run on; `cuda` or `mps` on a machine without one is a warning, then the CPU."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present[choice]:
        log.warning(
            "--device %s: this machine has none that torch %s can use; running on the CPU", choice, torch.__version__
        )
        return torch.device("cpu")
    return torch.device(choice)


def pick_dtype(choice: DtypeChoice, device: torch.device) -> torch.dtype:
    """The number format; "auto" is float32 on a CPU, bfloat16 on CUDA, float16 on Apple's GPUs."""
    chosen = {"cpu": "float32", "cuda": "bfloat16", "mps": "float16"}[device.type] if choice == "auto" else choice
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def load_weights(model: nn.Module, checkpoint: Checkpoint, rename: Callable[[str], str]) -> None:
    """Copy every tensor of `checkpoint` into `model`, casting to the model's number format on the way.

    `rename` maps a checkpoint's tensor name to the model's. Raises StartError with the name of the first tensor that
    is missing, unexpected or mis-shaped; computed buffers and tied output weights may be absent or present.
    """
    folder, progress = checkpoint.folder, checkpoint.progress
    targets = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, target in targets.items():
        groups.setdefault(target.data_ptr(), []).append(name)
    aliases = {name: names for names in groups.values() for name in names}
    filled: set[str] = set()
    for stored, read in _stored_tensors(folder):
        name = rename(stored)
        if name not in targets:
            if name.endswith(_FORGETTABLE):
                continue
            raise StartError(f"{folder}: unexpected tensor {stored}; the model has no place for it")
        tensor = read()
        if tensor.shape != targets[name].shape:
            wanted, found = list(targets[name].shape), list(tensor.shape)
            raise StartError(f"{folder}: tensor {stored} has shape {found}, but config.json asks for {wanted}")
        with torch.no_grad():
            targets[name].copy_(tensor)
        filled.update(aliases[name])
        if progress is not None:
            progress(len(filled), len(targets))
    missing = sorted(set(targets) - filled)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StartError(f"{folder}: tensor {missing[0]}{more} is missing from the weights")


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Every stored tensor's name and how to read it, one file open at a time."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, partial(file.get_tensor, name)
        except (OSError, SafetensorError) as error:
            raise StartError(f"{path} is no readable safetensors file: {error}") from None


def video_settings(folder: Path) -> JsonObject:
    """The video processor's settings, empty where the checkpoint has none of its own."""
    inner = read_optional_json(folder / "processor_config.json").get("video_processor")
    return inner if isinstance(inner, dict) else read_optional_json(folder / "video_preprocessor_config.json")


def image_settings(folder: Path) -> JsonObject:
    """The image processor's settings, from whichever file the checkpoint's age put them in."""
    table = read_optional_json(folder / "preprocessor_config.json")
    if not table:
        inner = read_optional_json(folder / "processor_config.json").get("image_processor")
        table = inner if isinstance(inner, dict) else {}
    if not table:
        raise StartError(f"{folder} holds no image settings (preprocessor_config.json or processor_config.json)")
    names = (
        "image_processor_type",
        "processor_class",
        "_processor_class",
        "feature_extractor_type",
        "return_row_col_info",
    )
    return {name: value for name, value in table.items() if name not in names}
