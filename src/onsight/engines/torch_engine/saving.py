"""Writes a model whose weights were brought into few bits, to be read again without reading the plain ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.engines.torch_engine import loading
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.memory import require_room
from onsight.engines.torch_engine.quantize import Scheme, packed_order
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import ModelCard
from onsight.models.hub import QUANT_METHOD, WANTED

_SHARD_BYTES = 1 << 30
"""About so many bytes a file: what is written is copied once, a file at a time."""


def save_quantised(folder: Path, card: ModelCard, scheme: Scheme, out: Path, progress: Progress | None = None) -> None:
    """Write the model in `folder` with its products in `scheme` into the new folder `out`.

    Raises StartError for a model that cannot be read so, and for a folder that holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StartError(f"{out} is there already and not empty: name a new folder")
    loading.check_folder(folder, card.replaces_code)
    if loading.saved_scheme(folder) is not None:
        raise StartError(f"{folder} holds {loading.saved_scheme(folder)} weights already: give the plain model")
    device = torch.device("cpu")
    require_room(folder, device, torch.float32, scheme)
    try:
        out.mkdir(parents=True, exist_ok=True)
        load_family(
            card.family,
            loading.Checkpoint(folder, device, torch.float32, progress, scheme, lambda model: _write(model, out)),
            Vocabulary(folder),
        )
        _write_beside(folder, scheme, out)
    except OSError as error:
        raise StartError(f"{out} cannot be written: {error.strerror or error}") from None


def _write(model: nn.Module, out: Path) -> None:
    """The tensors of a whole model, tied ones once, in files of about `_SHARD_BYTES` with their index."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if sum(one.nbytes for one in shards[-1].values()) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor.detach().contiguous()
    table: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        table |= dict.fromkeys(shard, file)
    (out / loading.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}), "utf-8")


def _write_beside(folder: Path, scheme: Scheme, out: Path) -> None:
    """The files that go with the weights; config.json says that they are quantised, so that no one reads them wrong."""
    for path in sorted({path for pattern in WANTED for path in folder.glob(pattern)}):
        if path.suffix != ".safetensors" and path.name != loading.INDEX:
            shutil.copyfile(path, out / path.name)
    table = loading.read_json(folder / "config.json")
    table["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "scheme": scheme,
        "order": packed_order(),
    }
    (out / "config.json").write_text(json.dumps(table, indent=2) + "\n", "utf-8")
