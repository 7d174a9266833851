"""LoRA adapters as peft stores them: checked, every tensor accounted for, and added to the weights of their base."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from onsight.core.errors import StartError
from onsight.engines.torch_engine.loading import read_json, read_tensors, refuse_code
from onsight.models.hub import ADAPTER_CONFIG

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HALVES = (".lora_A.weight", ".lora_B.weight")
_NOT_THE_PRODUCT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "r", "revision", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Settings that are read below, or that say nothing about what the finished adapter computes."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter: each target's weight grows by `scale` times the product of its two halves, of rank `rank`.

    `targets`: the modules that it is for, as its configuration words them (names, or one pattern).
    """

    folder: Path
    rank: int
    scale: float
    targets: str


def read_adapter(folder: Path) -> Adapter:
    """What adapter_config.json says. Raises StartError for anything that is not plain LoRA in safetensors."""
    path = folder / ADAPTER_CONFIG
    table = read_json(path)
    refuse_code(folder)
    wanted: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("peft_type", ("LORA",)),
        ("bias", ("none",)),
        ("revision", (None, "main")),
        ("init_lora_weights", (True, False, "gaussian", None)),
    )
    for name, values in wanted:
        if table.get(name, values[0]) not in values:
            raise _unknown(path, name, table[name])
    for name, value in table.items():
        if name not in _NOT_THE_PRODUCT and value:
            raise _unknown(path, name, value)
    rank, alpha, targets = table.get("r"), table.get("lora_alpha"), table.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not targets:
        raise StartError(f"{path} is not complete: r is {rank!r}, lora_alpha {alpha!r}, target_modules {targets!r}")
    _check_files(folder)
    scale = alpha / (math.sqrt(rank) if table.get("use_rslora") else rank)
    return Adapter(folder, rank, scale, targets if isinstance(targets, str) else " ".join(_words(path, targets)))


def _unknown(path: Path, name: str, value: object) -> StartError:
    return StartError(
        f"{path}: {name} is {value!r}, which is not understood here; merge the adapter into its base model with peft"
        " and serve the merged folder"
    )


def _words(path: Path, targets: object) -> list[str]:
    if isinstance(targets, list) and all(isinstance(word, str) for word in targets):
        return targets
    raise StartError(f"{path}: target_modules must be a pattern or a list of names, not {targets!r}")


def _check_files(folder: Path) -> None:
    stored = sorted(path.name for path in folder.glob("*.safetensors"))
    if stored != [_WEIGHTS]:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = ", ".join(stored + [f"{name}, which can hide code" for name in pickles]) or "none"
        raise StartError(f"{folder} must hold its adapter's weights in {_WEIGHTS} alone; found {found}")


def merge_adapter(model: nn.Module, adapter: Adapter, rename: Callable[[str], str | None]) -> None:
    """Add the adapter's products to the weights of `model`, in float32.

    `rename` maps the name of a weight in a checkpoint to the model's, as for `load_weights`. Raises StartError with
    the name of the first tensor that is missing, unexpected or mis-shaped.
    """
    folder = adapter.folder
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    halves: dict[tuple[str, str], torch.Tensor] = {}
    for stored, tensor in read_tensors(folder / _WEIGHTS).items():
        half = next((one for one in _HALVES if stored.endswith(one)), "")
        weight = rename(stored.removeprefix(_PREFIX).removesuffix(half) + ".weight") if half else None
        module = "" if weight is None else weight.removesuffix(".weight")
        if not stored.startswith(_PREFIX) or module not in linears:
            raise StartError(f"{folder}: unexpected tensor {stored}; the model has no place for it")
        linear = linears[module]
        wanted = [adapter.rank, linear.in_features] if half == _HALVES[0] else [linear.out_features, adapter.rank]
        if list(tensor.shape) != wanted:
            raise StartError(f"{folder}: tensor {stored} has shape {list(tensor.shape)}, but must have {wanted}")
        if (module, half) in halves:
            raise StartError(f"{folder}: there is a second tensor like {stored} for the same place; keep one of them")
        halves[module, half] = tensor
    changed = _targets(linears, adapter.targets, {module for module, _ in halves})
    for module in changed:
        for half in _HALVES:
            if (module, half) not in halves:
                raise StartError(f"{folder}: tensor {module}{half} is missing from the adapter")
    for module in changed:
        down, up = (halves[module, half].to(linears[module].weight.device, torch.float32) for half in _HALVES)
        with torch.no_grad():
            grown = linears[module].weight.float() + adapter.scale * (up @ down)
            linears[module].weight.copy_(grown)


def _targets(linears: dict[str, nn.Linear], targets: str, adapted: set[str]) -> list[str]:
    """Every module that must have both halves: what the configuration names, and the like of what is stored.

    Patterns are written for the module names of one version or another of transformers, so they are not applied: the
    last part of a module's name is looked for in the pattern, and a half of the model, seeing or reading, where one
    such module is adapted has all of its kind adapted.
    """

    def kind(module: str) -> tuple[str, str]:
        return module.partition(".")[0], module.rpartition(".")[2]

    stored = {kind(module) for module in adapted}
    seeing = "visual"
    return [
        module
        for module in linears
        if kind(module) in stored or (kind(module)[0] != seeing and kind(module)[1] in targets)
    ]
