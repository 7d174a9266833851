"""`transformers serve`, the real one, made to start for a SmolVLM checkpoint where there is no torchvision.

    python -m benchmarks.peers.transformers_serve FOLDER PORT [--dtype NAME]

Only the loading of the processor is replaced; the app, its routes and its generation are transformers' own, with its
defaults. It listens on 127.0.0.1 once the model is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import transformers
from transformers.cli.serve import Serve

from benchmarks.peers.processor import load_processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--dtype", default="auto", help="number type of the weights; 'auto' is the checkpoint's")
    arguments = parser.parse_args()
    processor = load_processor(arguments.folder)
    transformers.AutoProcessor.from_pretrained = lambda *_, **__: processor
    Serve(force_model=str(arguments.folder), host="127.0.0.1", port=arguments.port, dtype=arguments.dtype)


if __name__ == "__main__":
    main()
