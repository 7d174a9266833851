"""Write a checkpoint's weights into a bundled folder.

python -m training.export RUN
python -m training.export --model leaf RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import leaf, model
from training.loop import load_checkpoint


@dataclass(frozen=True)
class Bundled:
    """How one bundled model is made and stored: its folder, a model for a folder's tokenizer, the writer of weights."""

    folder: Path
    new: Callable[[Path], nn.Module]
    save: Callable[[Any, Path], None]


MODELS = {
    "peek": Bundled(model.BUNDLED, lambda folder: model.new_model(model.load_tokenizer(folder)), model.save_weights),
    "leaf": Bundled(leaf.LEAF, lambda folder: leaf.new_leaf(leaf.load_tokenizer(folder)), leaf.save_weights),
}


def main() -> None:
    """Run the export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, each with its checkpoint.pt")
    parser.add_argument("--model", choices=MODELS, default="peek")
    parser.add_argument("--folder", type=Path, help="model folder (its tokenizer stays as it is)")
    arguments = parser.parse_args()
    bundled = MODELS[arguments.model]
    folder = arguments.folder or bundled.folder
    made = bundled.new(folder)
    sums: dict[str, torch.Tensor] = {}
    for run in arguments.runs:
        print(f"{run}: {load_checkpoint(run, {'model': made})}")
        for name, tensor in made.state_dict().items():
            sums[name] = sums.get(name, 0.0) + tensor.clone() / len(arguments.runs)
    made.load_state_dict(sums)
    bundled.save(made, folder)


if __name__ == "__main__":
    main()
