"""Loads a model that is larger than memory in float32, in 4 bits, asks it about a picture, and prints what that held.

python -m benchmarks.large [--shape NAME] [--models FOLDER] [--saved] [--words-only]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cpu import SIDES, Memory
from benchmarks.families import QUESTION, Pictures
from benchmarks.shapes import SHAPES, Shape, weights, write_shape
from onsight.core.messages import Message, Text


async def run(shape: Shape, folder: Path, words_only: bool) -> None:
    """Load, answer once with 8 tokens, print."""
    memory, began_s = Memory(), time.perf_counter()

    def tell(what: str) -> None:
        held = memory.now()
        sizes = ", ".join(
            f"{name} {size / 2**30:.2f} GiB"
            for name, size in (
                ("resident", held[0]),
                ("of it no file's", held[1]),
                ("most so far", memory.peak),
                ("of it no file's", memory.peak_anonymous),
            )
        )
        print(f"{what} after {time.perf_counter() - began_s:.0f} s: {sizes}", flush=True)

    async with SIDES["int4"](shape, folder) as running:
        tell("loaded")
        made = await running.write([Message("user", (Text("Hello"),))], 8)
        tell(f"a short question answered, {made.tokens_per_s:.2f} tokens/s")
        if not words_only:
            picture = Pictures().next(*shape.screens[0])
            await running.first(Message("user", (picture, Text(QUESTION))))
            tell("a picture looked at and one token written")


def save(folder: Path) -> Path:
    """Where `onsight quantize`, in a process of its own, wrote the checkpoint; prints what that took."""
    out, began_s = folder.with_name(f"{folder.name}-int4"), time.perf_counter()
    if not out.exists():
        subprocess.run([sys.executable, "-m", "onsight", "quantize", str(folder), "--out", str(out)], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        print(f"written after {time.perf_counter() - began_s:.0f} s: most resident {peak / 2**30:.2f} GiB", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="Llama-3.2-Vision-11B")
    parser.add_argument("--models", type=Path, help="where the checkpoint is kept for a next run; nowhere if unset")
    parser.add_argument("--saved", action="store_true", help="write it in 4 bits first, and load what was written")
    parser.add_argument("--words-only", action="store_true", help="ask about no picture")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.models or Path(temporary)) / f"{shape.name}-all"
        if not folder.exists():
            write_shape(shape, folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(
            f"{shape.name}: {weights(shape) / 1e9:.1f}e9 weights, {size / 2**30:.1f} GiB of bfloat16 files", flush=True
        )
        if arguments.saved:
            folder = save(folder)
        asyncio.run(run(shape, folder, arguments.words_only))


if __name__ == "__main__":
    main()
