"""Models on a plain CPU, random weights of the published shapes: float32, bfloat16, 8 and 4 bits, transformers'
`generate`, and llama.cpp's own server.

python -m benchmarks.cpu [--shapes NAME ...] [--sides NAME ...] [--layers N] [--rounds N] [--screens N] [--tokens N]
[--models FOLDER [--keep]] | --render
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch

from benchmarks.families import QUESTION, SPARE_BYTES, Generate, Ours, Pictures, Plan, Written, prompts
from benchmarks.llama_side import KINDS, files, llama
from benchmarks.report import LOCAL_CHANGES, RESULTS, Aim, Cell, Report, Table, commit, date, median, publish
from benchmarks.shapes import SHAPES, Shape, reference, shortened, weights, write_shape
from onsight.core.messages import Image, Message, Text
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.settings import DtypeChoice, QuantizeChoice
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card

DEFAULT = ("SmolVLM2-256M", "SmolVLM2-500M", "SmolVLM2-2.2B", "Llama-3.2-Vision-11B")
CUT = {"Llama-3.2-Vision-11B": 4}
"""Layers of a decoder that is too large whole in float32, where --layers does not say otherwise."""
REQUESTS = (1, 4)
BYTES_A_WEIGHT = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "int8": 1.3,
    "int4": 0.9,
    "generate": 4.0,
    "q8_0": 1.3,
    "q4_k_m": 0.9,
}
"""About, with the parts that stay wide; for deciding whether a side fits."""
_WRITING, _FIRST = "writing, tokens/s, 1 request", "first token with it, s"
"""Columns that aims are made of."""
_ENDLESS_S = 1e9
_WATCH_S = 0.02


class CpuSide(Protocol):
    """What is measured of one way to run a model. `process_id`: where it runs; `load_s`: None where entering is it."""

    process_id: int
    load_s: float | None

    async def write(self, asked: Sequence[Message], tokens: int) -> Written:
        """Answer all at once; tokens/s from the moment when all had their first."""
        ...

    async def first(self, prompt: Message) -> tuple[float, int]:
        """(seconds until the first token, tokens of the prompt)."""
        ...

    def encode(self, image: Image) -> float | None:
        """Seconds from pixels to features; None where it cannot be asked for alone."""
        ...


class Onsight(Ours):
    """The engine, and its family, so that pictures can be encoded alone."""

    process_id, load_s = os.getpid(), None

    def __init__(self, engine: TorchEngine, family: Family) -> None:
        super().__init__(engine)
        self.family = family

    def encode(self, image: Image) -> float | None:
        """See `CpuSide.encode`; resizing counts."""
        began_s = time.perf_counter()
        with torch.inference_mode():
            self.family.encode([self.family.prepare(self.family.plan(image))])
        return time.perf_counter() - began_s


class Transformers(Generate):
    """transformers' own model."""

    process_id, load_s = os.getpid(), None

    def encode(self, image: Image) -> float | None:
        """See `CpuSide.encode`."""
        return None


@asynccontextmanager
async def _onsight(
    shape: Shape, folder: Path, quantize: QuantizeChoice, dtype: DtypeChoice = "float32"
) -> AsyncIterator[CpuSide]:
    loaded: list[Family] = []

    def load(name: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Family:
        loaded.append(load_family(name, checkpoint, vocabulary))
        return loaded[-1]

    slots = max(REQUESTS)
    settings = TorchSettings(
        device="cpu",
        dtype=dtype,
        quantize=quantize,
        max_num_seqs=slots,
        max_model_len=shape.context,
        kv_cache_tokens=slots * shape.context,  # places are memory only once they are written to
    )
    engine = TorchEngine(folder, find_card(shape.name, folder), settings, load_family=load)
    await engine.start()
    try:
        yield Onsight(engine, loaded[0])
    finally:
        await engine.close()


@asynccontextmanager
async def _generate(shape: Shape, folder: Path) -> AsyncIterator[CpuSide]:
    plan = Plan(torch.device("cpu"), torch.float32, REQUESTS, 0, 0, _ENDLESS_S)
    yield Transformers(reference(shape, folder), plan)


Open = Callable[[Shape, Path], AbstractAsyncContextManager[CpuSide]]
SIDES: dict[str, Open] = {
    "float32": lambda shape, folder: _onsight(shape, folder, "none"),
    "bfloat16": lambda shape, folder: _onsight(shape, folder, "none", "bfloat16"),
    "int8": lambda shape, folder: _onsight(shape, folder, "int8"),
    "int4": lambda shape, folder: _onsight(shape, folder, "int4"),
    "generate": _generate,
    "q8_0": lambda shape, folder: llama(shape, folder, "q8_0"),
    "q4_k_m": lambda shape, folder: llama(shape, folder, "q4_k_m"),
}
"""Another program gets a column by an entry here and in `BYTES_A_WEIGHT`."""


@dataclass(frozen=True, slots=True)
class Found:
    """One side's figures: tokens/s by requests, seconds, bytes.

    `resident` is what the process held once it was loaded, `anonymous` what of that is not a file's; `peak` is the most
    of the whole run, the mapped files that were read included.
    """

    prefill: dict[int, float]
    decode: dict[int, float]
    encode_s: float | None
    first_s: float
    load_s: float
    resident: int
    anonymous: int
    peak: int
    peak_anonymous: int
    layers: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures, the commit that they are of, and when they were found. `kept`: by an earlier run."""

    found: Found
    commit: str
    date: str
    kept: bool = False


class Memory:
    """Watches what a process holds, from now on; `process_id` may change meanwhile."""

    def __init__(self) -> None:
        self.process_id = os.getpid()
        self.peak = self.peak_anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> tuple[int, int]:
        """(resident, and what of that is no file's)."""
        lines = Path(f"/proc/{self.process_id}/status").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon")))
        held = {name: int(value.split()[0]) << 10 for name, value in table.items()}
        return held["VmRSS"], held["RssAnon"]

    def _watch(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError, KeyError):  # it has ended
            while True:
                resident, anonymous = self.now()
                self.peak, self.peak_anonymous = max(self.peak, resident), max(self.peak_anonymous, anonymous)
                time.sleep(_WATCH_S)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: `rounds` of reading and writing `tokens`, and `screens` looked at, which take longest."""

    tokens: int
    rounds: int
    screens: int


async def measure(side: str, shape: Shape, folder: Path, effort: Effort) -> Found:
    """All figures of one side, each the median of its rounds."""
    memory, drawn, numbers = Memory(), Pictures(), itertools.count(1)
    began_s = time.perf_counter()
    async with SIDES[side](shape, folder) as running:
        load_s = running.load_s or time.perf_counter() - began_s
        if running.process_id != memory.process_id:
            memory.process_id, memory.peak, memory.peak_anonymous = running.process_id, 0, 0
        resident, anonymous = memory.now()
        await running.write(prompts(1, numbers), 2)  # not counted: the first request pays for lazy set-up
        prefill: dict[int, list[float]] = {}
        decode: dict[int, list[float]] = {}
        firsts, encodes = [], []
        for _ in range(effort.rounds):
            for count in REQUESTS:
                asked = prompts(count, numbers)
                decode.setdefault(count, []).append((await running.write(asked, effort.tokens)).tokens_per_s)
                asked, began_s = prompts(count, numbers), time.perf_counter()
                read = sum([one for _, one in await asyncio.gather(*(running.first(prompt) for prompt in asked))])
                prefill.setdefault(count, []).append(read / (time.perf_counter() - began_s))
        for _ in range(effort.screens):
            picture = drawn.next(*shape.screens[0])
            spent = running.encode(drawn.next(*shape.screens[0]))
            encodes += [] if spent is None else [spent]
            firsts.append((await running.first(Message("user", (picture, Text(QUESTION)))))[0])
    return Found(
        {count: median(values) for count, values in prefill.items()},
        {count: median(values) for count, values in decode.items()},
        median(encodes) if encodes else None,
        median(firsts), load_s, resident, anonymous, memory.peak, memory.peak_anonymous, count_layers(folder),
    )  # fmt: skip


def count_layers(folder: Path) -> int:
    """Of the decoder of the checkpoint in `folder`."""
    return int(json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"])


def cut(name: str, layers: int | None) -> Shape:
    """The shape as it is measured."""
    layers = layers or CUT.get(name)
    return shortened(SHAPES[name], layers) if layers else SHAPES[name]


def obstacle(side: str, shape: Shape) -> str | None:
    """Why a side cannot be measured here, as a sentence; None when it can."""
    if side in KINDS and shape.kind != "smolvlm":
        return f"{shape.name}, {side}: left out, llama.cpp does not run it."
    needed, free = int(weights(shape) * BYTES_A_WEIGHT[side]) + SPARE_BYTES, psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"{shape.name}, {side}: left out, it takes about {needed / 2**30:.0f} GiB of memory and {free / 2**30:.0f} GiB"
        " are free."
    )


def in_child(side: str, shape: Shape, folder: Path, arguments: argparse.Namespace) -> Found:
    """`measure` in a process of its own, so that memory is its alone. Raises CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--child", str(folder), "--shapes", shape.name, "--sides", side]
    command += ["--tokens", str(arguments.tokens), "--rounds", str(arguments.rounds)]
    command += ["--screens", str(arguments.screens)]
    command += ["--layers", str(arguments.layers)] if arguments.layers else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return read(done.stdout.splitlines()[-1])


def read(line: str) -> Found:
    """What `measure` found, as its process prints it."""
    table = json.loads(line)
    for name in ("prefill", "decode"):
        table[name] = {int(count): value for count, value in table[name].items()}
    return Found(**table)


def read_kept(path: Path) -> Measured:
    """What an earlier run wrote there."""
    table = json.loads(path.read_text())
    return Measured(read(json.dumps(table["found"])), table["commit"], table["date"], kept=True)


def may_stand(one: Measured, now: str, *, keep: bool) -> bool:
    """Whether figures need not be measured anew at the commit `now`: two states with local changes may differ."""
    return keep or (one.commit == now and not now.endswith(LOCAL_CHANGES))


def aims(figures: Mapping[tuple[str, str], tuple[float, float]]) -> tuple[Aim, ...]:
    """`figures`: of a shape and side, tokens/s that it writes for one request, and seconds to the first token."""
    shapes = dict.fromkeys(shape for shape, _ in figures)
    written = [
        Aim(
            f"{shape}: int4 writes, beside float32, one request", 2.0,
            figures[shape, "int4"][0] / figures[shape, "float32"][0], "x", at_least=True,
        )
        for shape in shapes
        if {(shape, "int4"), (shape, "float32")} <= figures.keys()
    ]  # fmt: skip
    first = [
        Aim(
            f"{shape}: seconds to the first token after a screen, {side} beside {kind}", 0.5,
            figures[shape, side][1] / figures[shape, kind][1], "x",
        )
        for shape in shapes
        for side in ("float32", "bfloat16", "int4")
        for kind in KINDS
        if {(shape, side), (shape, kind)} <= figures.keys()
    ]  # fmt: skip
    return (*written, *first)


def kept_notes(measured: Mapping[tuple[str, str], Measured]) -> list[str]:
    """A sentence a commit on what this run did not measure itself."""
    kept: dict[str, list[str]] = {}
    for (shape, side), one in measured.items():
        if one.kept:
            kept.setdefault(one.commit, []).append(f"{shape} {side} ({one.date})")
    return [f"Kept from an earlier run, at commit {name}: {', '.join(rows)}." for name, rows in kept.items()]


def report(
    measured: Mapping[tuple[str, str], Measured], left_out: Sequence[str], arguments: argparse.Namespace
) -> Report:
    """The tables; one row a shape and side."""
    rows: list[tuple[Cell, ...]] = []
    found = {key: one.found for key, one in measured.items()}
    for (shape, side), one in found.items():
        encode: Cell = "–" if one.encode_s is None else one.encode_s
        sizes = [size / 2**30 for size in (one.resident, one.anonymous, one.peak, one.peak_anonymous)]
        speeds = [*(one.prefill[count] for count in REQUESTS), *(one.decode[count] for count in REQUESTS)]
        each_ms = 1000 / one.decode[1] / one.layers
        rows.append((f"{shape}, {one.layers} layers", side, *speeds, each_ms, encode, one.first_s, one.load_s, *sizes))
    columns = (
        "shape", "weights", "reading, tokens/s, 1 request", f"{REQUESTS[1]} requests",
        _WRITING, f"{REQUESTS[1]} requests", "a token, ms by layer", "encoding a screen, s",
        _FIRST, "loading, s", "resident, GiB", "of it no file's", "peak, GiB", "of it no file's",
    )  # fmt: skip
    notes = (
        *left_out,
        *kept_notes(measured),
        f"Reading and writing are medians of {arguments.rounds} rounds, answers have {arguments.tokens} tokens; what"
        f" has a screen is the median of {arguments.screens}. Each row ran in a process of its"
        " own, on random weights stored as bfloat16.",
        '"float32" and "bfloat16" are Onsight with that --dtype, "int8" and "int4" with that --quantize; "generate" is'
        ' transformers; "q8_0" and "q4_k_m" are llama.cpp\'s own server over HTTP, without Onsight, what sees in half'
        " floats.",
        "Peaks hold the pages of the checkpoint's files that were being read, which the system takes back when it needs"
        ' them; "of it no file\'s" is what a machine must have.',
        "The milliseconds of a written token are divided by the layers, the output head's share among them.",
        *([f"Decoders were cut to {arguments.layers} layers."] if arguments.layers else []),
        *(f"{name} has more layers than stand here: so it fits in float32." for name in CUT if not arguments.layers),
    )
    reached = aims({key: (one.decode[1], one.first_s) for key, one in found.items()})
    details = {f"{shape}, {side}": asdict(one) for (shape, side), one in measured.items()}
    return Report("cpu", "Models on a CPU", reached, (Table("All", columns, tuple(rows)),), notes, details)


def render(folder: Path) -> None:
    """Write the report in `folder` anew out of its own figures, which keep their commit and date."""
    told = json.loads((folder / "cpu.json").read_text("utf-8"))
    (table,) = told["tables"]
    rows = tuple(tuple(row) for row in table["rows"])
    writing, first = (table["columns"].index(name) for name in (_WRITING, _FIRST))
    figures = {(row[0].rpartition(",")[0], row[1]): (row[writing], row[first]) for row in rows}
    made = Table(table["title"], tuple(table["columns"]), rows)
    notes = tuple(told["notes"])
    publish(Report(told["name"], told["title"], aims(figures), (made,), notes, told["details"]), folder, told["facts"])


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(DEFAULT))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--layers", type=int, help="layers of each decoder; all if unset, but for the largest shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--screens", type=int, default=1, help="screens looked at, half a minute and more each")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument(
        "--models", type=Path, help="keeps checkpoints and figures, so that a run which was cut goes on at its commit"
    )
    parser.add_argument("--keep", action="store_true", help="figures of other commits stand too; the report says which")
    parser.add_argument(
        "--render", action="store_true", help="measure nothing: write the report in --out anew out of its own figures"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure every side of every shape, and write the report."""
    arguments = parse(given)
    if arguments.child:
        shape = cut(arguments.shapes[0], arguments.layers)
        effort = Effort(arguments.tokens, arguments.rounds, arguments.screens)
        found = asyncio.run(measure(arguments.sides[0], shape, arguments.child, effort))
        print(json.dumps(asdict(found)))
        return
    if arguments.render:
        render(arguments.out)
        return
    now = commit()
    measured: dict[tuple[str, str], Measured] = {}
    left_out: list[str] = []
    for name in arguments.shapes:
        shape = cut(name, arguments.layers)
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.models or Path(temporary)) / f"{name}-{arguments.layers or CUT.get(name, 'all')}"
            if not folder.exists():
                write_shape(shape, folder)
            for side in arguments.sides:
                kept = folder / f"figures-{side}-{arguments.rounds}-{arguments.screens}-{arguments.tokens}.json"
                one = read_kept(kept) if kept.exists() else None
                if one is None or not may_stand(one, now, keep=arguments.keep):
                    reason = obstacle(side, shape)
                    if reason is not None:
                        left_out.append(reason)
                        continue
                    if side in KINDS:
                        files(shape, folder, side)
                    one = Measured(in_child(side, shape, folder, arguments), now, date())
                    kept.write_text(json.dumps(asdict(one)))
                measured[name, side] = one
                print(name, side, one, flush=True)
    publish(report(measured, left_out, arguments), arguments.out)


if __name__ == "__main__":
    main()
