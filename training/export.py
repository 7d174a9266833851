"""Write a checkpoint's weights into the bundled folder.

python -m training.export RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.loop import load_checkpoint
from training.model import BUNDLED, load_tokenizer, new_model, save_weights


def main() -> None:
    """Run the export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, with its checkpoint.pt")
    parser.add_argument("--folder", type=Path, default=BUNDLED, help="model folder (its tokenizer stays as it is)")
    arguments = parser.parse_args()
    model = new_model(load_tokenizer(arguments.folder))
    state = load_checkpoint(arguments.run, {"model": model})
    save_weights(model, arguments.folder)
    print(f"{arguments.folder}: {state}")


if __name__ == "__main__":
    main()
