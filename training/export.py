"""Write a checkpoint's weights into the bundled folder.

python -m training.export RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.loop import load_checkpoint
from training.model import BUNDLED, load_tokenizer, new_model, save_weights


def main() -> None:
    """Run the export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, each with its checkpoint.pt")
    parser.add_argument("--folder", type=Path, default=BUNDLED, help="model folder (its tokenizer stays as it is)")
    arguments = parser.parse_args()
    model = new_model(load_tokenizer(arguments.folder))
    sums: dict[str, torch.Tensor] = {}
    for run in arguments.runs:
        print(f"{run}: {load_checkpoint(run, {'model': model})}")
        for name, tensor in model.state_dict().items():
            sums[name] = sums.get(name, 0.0) + tensor.clone() / len(arguments.runs)
    model.load_state_dict(sums)
    save_weights(model, arguments.folder)


if __name__ == "__main__":
    main()
