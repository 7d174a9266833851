"""Writes tiny random ColQwen2.5 checkpoints, with their tensors named as each age of the libraries named them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import write_qwen

DIMS = 128
# Before transformers 4.52, from then on, and since colpali_engine 0.3.11: ColQwen2_5 first was a
# Qwen2_5_VLForConditionalGeneration, whose parts moved, and then a Qwen2_5_VLModel.
LAYOUTS: dict[str, Callable[[str], str]] = {
    "first": lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    "nested": lambda name: name,
    "current": lambda name: name.removeprefix("model."),
}
TARGETS = "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$|.*(custom_text_proj).*$)"
"""The released adapters' own pattern."""


def write_colqwen(
    folder: Path, *, layout: str = "first", seed: int = 0, context: int = 1024, true_pictures: bool = False
) -> Path:
    """A ColQwen2.5 of about 0.2M parameters on `write_qwen`'s model; at most 64 image tokens a page, or 768."""
    write_qwen(folder, seed=seed, context=context, true_pictures=true_pictures)
    tensors = load_file(folder / "model.safetensors")
    if layout == "current":
        del tensors["lm_head.weight"]  # it has had no head since
    dice = torch.Generator().manual_seed(seed + 1)
    hidden = tensors["model.language_model.norm.weight"].numel()
    projection = {
        "custom_text_proj.weight": torch.randn(DIMS, hidden, generator=dice) * 0.2,
        "custom_text_proj.bias": torch.randn(DIMS, generator=dice) * 0.1,
    }
    save_file({LAYOUTS[layout](name): tensor for name, tensor in tensors.items()} | projection, _weights(folder))
    change_json(folder / "config.json", architectures=["ColQwen2_5"])
    return folder


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Put the tensors in a safetensors file through `change`."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"
