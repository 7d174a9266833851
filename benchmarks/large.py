"""Loads a model that is larger than memory in float32, in 4 bits, asks it about a picture, and says what that held.

python -m benchmarks.large [--shape NAME] [--models FOLDER] [--saved] [--words-only] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from benchmarks.cpu import SIDES, Memory, Onsight
from benchmarks.families import QUESTION, Pictures
from benchmarks.report import RESULTS, Aim, Cell, Report, Table, median, publish
from benchmarks.shapes import SHAPES, Shape, weights, write_shape
from onsight.core.messages import Message, Text
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.fused import FusedLayer

WHOLE = "Llama-3.2-Vision-11B"
LOADING_GIB, RUNNING_GIB = 24.0, 8.0
"""Bounds on what `WHOLE` takes while it is loaded, and then."""
SIZES = ("resident", "anonymous", "peak", "peak_anonymous")


@dataclass(frozen=True, slots=True)
class Stage:
    """What the process held once something was done, in bytes; `peak`: the most so far."""

    what: str
    seconds: float
    resident: int
    anonymous: int
    peak: int
    peak_anonymous: int


class LayerTimes:
    """How long each of a decoder's layers takes, by how many tokens it reads at once: one, or many."""

    def __init__(self, decoder: Decoder) -> None:
        self.kinds: list[str] = []
        self.reading: list[list[float]] = []
        self.writing: list[list[float]] = []
        self._began_s = 0.0
        for number, layer in enumerate(decoder._layers):
            self.kinds.append("text" if isinstance(layer, FusedLayer) else "picture")
            self.reading.append([])
            self.writing.append([])
            layer.register_forward_pre_hook(self._begin)
            layer.register_forward_hook(lambda layer, given, made, number=number: self._end(number, made.shape[1]))

    def _begin(self, layer: nn.Module, given: object) -> None:
        self._began_s = time.perf_counter()

    def _end(self, number: int, tokens: int) -> None:
        (self.writing if tokens == 1 else self.reading)[number].append(1000 * (time.perf_counter() - self._began_s))

    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """(layer, what it sees, ms of the longest reading, median ms of writing a token)."""
        return tuple(
            (number, kind, max(reading) if reading else "–", median(writing) if writing else "–")
            for number, (kind, reading, writing) in enumerate(zip(self.kinds, self.reading, self.writing, strict=True))
        )


async def run(shape: Shape, folder: Path, words_only: bool) -> tuple[list[Stage], LayerTimes]:
    """Load, answer with 8 tokens, look at a picture; what each took is printed when it is known."""
    memory, began_s = Memory(), time.perf_counter()
    stages: list[Stage] = []

    def tell(what: str) -> None:
        resident, anonymous = memory.now()
        peaks = max(resident, memory.peak), max(anonymous, memory.peak_anonymous)  # the watch looks now and then
        done = Stage(what, time.perf_counter() - began_s, resident, anonymous, *peaks)
        stages.append(done)
        sizes = ", ".join(f"{name} {getattr(done, name) / 2**30:.2f} GiB" for name in SIZES)
        print(f"{what} after {done.seconds:.0f} s: {sizes}", flush=True)

    async with SIDES["int4"](shape, folder) as running:
        assert isinstance(running, Onsight)
        tell("loaded")
        times = LayerTimes(running.family.decoder)
        made = await running.write([Message("user", (Text("Hello"),))], 8)
        tell(f"a short question answered, {made.tokens_per_s:.2f} tokens/s")
        if not words_only:
            picture = Pictures().next(*shape.screens[0])
            await running.write([Message("user", (picture, Text(QUESTION)))], 2)
            tell("a picture looked at and two tokens written")
    return stages, times


def report(shape: Shape, file_bytes: int, stages: Sequence[Stage], times: LayerTimes, notes: Sequence[str]) -> Report:
    """Memory by stage and time by layer, and the two bounds on an 11B's memory."""
    rows = tuple(
        (one.what, one.seconds, *(size / 2**30 for size in (one.resident, one.anonymous, one.peak, one.peak_anonymous)))
        for one in stages
    )
    columns = ("once it had", "after, s", "resident, GiB", "of it no file's", "most so far, GiB", "of it no file's")
    aims = (
        Aim("most resident while it was loaded", LOADING_GIB, stages[0].peak / 2**30, "GiB"),
        Aim("resident after a short answer", RUNNING_GIB, stages[1].resident / 2**30, "GiB"),
    )
    layers = ("layer", "sees", "reading, ms", "writing a token, ms")
    return Report(
        "large",
        f"A large model on a CPU in 4 bits: {shape.name}",
        aims if shape.name == WHOLE else (),
        (Table("Memory", columns, rows), Table("Layers of the decoder", layers, times.rows())),
        (
            f"{weights(shape) / 1e9:.1f}e9 random weights of the true shape, {file_bytes / 2**30:.1f} GiB of files.",
            'Resident: with pages of files, which the system may take back; "of it no file\'s" must be had.',
            "Reading: the longest pass of each layer over a prompt. Writing: the median of one token's passes.",
            *notes,
        ),
        {"stages": [asdict(one) for one in stages], "reading_ms": times.reading, "writing_ms": times.writing},
    )


def save(folder: Path) -> tuple[Path, list[str]]:
    """Where `onsight quantize`, in a process of its own, wrote the checkpoint, and what that took."""
    out, began_s = folder.with_name(f"{folder.name}-int4"), time.perf_counter()
    if not out.exists():
        subprocess.run([sys.executable, "-m", "onsight", "quantize", str(folder), "--out", str(out)], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        took = f"{time.perf_counter() - began_s:.0f} s, {peak / 2**30:.2f} GiB resident at most"
        print(f"written: {took}", flush=True)
        return out, [f"`onsight quantize` wrote the 4 bits that were loaded: {took}."]
    return out, ["The 4 bits that were loaded had been written before by `onsight quantize`."]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default=WHOLE)
    parser.add_argument("--models", type=Path, help="where the checkpoint is kept for a next run; nowhere if unset")
    parser.add_argument("--saved", action="store_true", help="write it in 4 bits first, and load what was written")
    parser.add_argument("--words-only", action="store_true", help="ask about no picture")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    arguments = parser.parse_args(given)
    shape = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.models or Path(temporary)) / f"{shape.name}-all"
        if not folder.exists():
            write_shape(shape, folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(
            f"{shape.name}: {weights(shape) / 1e9:.1f}e9 weights, {size / 2**30:.1f} GiB of bfloat16 files", flush=True
        )
        notes: list[str] = []
        if arguments.saved:
            folder, notes = save(folder)
        stages, times = asyncio.run(run(shape, folder, arguments.words_only))
    publish(report(shape, size, stages, times, notes), arguments.out)


if __name__ == "__main__":
    main()
