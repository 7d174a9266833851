"""llama.cpp through Onsight and llama.cpp alone, on the same random weights of a published shape.

python -m benchmarks.llama [--shapes NAME ...] [--rounds N] [--tokens N]

Beside the torch engine llama.cpp stands in benchmarks/cpu.py.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.client import ask_all, chat_body
from benchmarks.report import RESULTS, Aim, Report, Table, median, publish
from benchmarks.server import Command, RunningServer, onsight, running
from benchmarks.shapes import SHAPES, write_shape
from training.export_gguf import MIXTURE, export_gguf

KINDS = ("Q8_0", MIXTURE)
REQUESTS = (1, 4)
WAYS = (*((kind, 2) for kind in KINDS), (MIXTURE, 1))
"""(kind, threads): all of this machine's two cores, and one of them, as where there are more cores than threads."""
SLOTS, THREADS = 4, 2
WORDS = "say what you see in this picture, and where; "
THROUGH = 0.97
DEFAULT = ("SmolVLM2-256M", "SmolVLM2-500M", "SmolVLM2-2.2B")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: rounds, tokens of an answer."""

    rounds: int
    tokens: int


@dataclass(slots=True)
class Measured:
    """One way's figures, one a round: tokens/s read, and written by requests at once."""

    reads: list[float] = field(default_factory=list)
    writes: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in REQUESTS})
    resident_mb: float = 0.0


def name_of(kind: str, threads: int, way: str) -> str:
    """A row of the table."""
    return f"llama.cpp {kind} {way}" + (f", {threads} thread" if threads < THREADS else "")


def alone(model: Path, mmproj: Path, name: str, threads: int, context: int) -> Command:
    """llama.cpp's own server."""
    bounds = ("--threads", str(threads), "--slots", str(SLOTS), "--context", str(context))
    arguments = ("-m", "benchmarks.peers.llama_server", str(model), str(mmproj), "{port}", *bounds)
    return Command(name, arguments, "/health")


def commands(shape: str, folder: Path) -> Iterator[list[Command]]:
    """The pairs that are compared: alone and through Onsight; the files of `shape` are written into `folder`."""
    plain = write_shape(SHAPES[shape], folder / "plain")
    context = SHAPES[shape].context
    bounds = ("--max-num-seqs", str(SLOTS), "--max-model-len", str(context), "--no-ui", "--threads")
    files = {kind: export_gguf(plain, folder / kind, shape, kind) for kind in KINDS}
    for kind, threads in WAYS:
        model, mmproj = files[kind]
        through = onsight(str(model), *bounds, str(threads))
        yield [
            alone(model, mmproj, name_of(kind, threads, "alone"), threads, context),
            Command(name_of(kind, threads, "through Onsight"), through.arguments, "/ready"),
        ]


def ask_round(server: RunningServer, told: Measured, tokens: int, numbers: Iterator[int]) -> None:
    """Everything once."""
    (long,), _ = asyncio.run(ask_all(server.url, [_body(next(numbers), 32, 2)], 1))
    told.reads.append(long.prompt_tokens / long.first_s)
    for count in REQUESTS:
        answers, _ = asyncio.run(ask_all(server.url, [_body(next(numbers), 4, tokens) for _ in range(count)], count))
        # From the moment when each began; its first token is the prompt's.
        told.writes[count].append(sum((one.tokens - 1) / (one.total_s - one.first_s) for one in answers))
    written = ", ".join(f"{told.writes[count][-1]:.1f} at {count}" for count in REQUESTS)
    print(f"{server.name}: {told.reads[-1]:.0f} tokens/s read, {written} written", flush=True)


def _body(number: int, times: int, tokens: int) -> bytes:
    """A request that no other one shares a beginning with."""
    return chat_body([{"role": "user", "content": f"{number} {WORDS * times}"}], tokens=tokens)


def measure(shape: str, folder: Path, plan: Plan) -> dict[str, Measured]:
    """Pair by pair, since more than two large models may not fit: every round each server does everything once, the
    other stopped; who is first changes."""
    measured: dict[str, Measured] = {}
    numbers = itertools.count()
    for pair in commands(shape, folder):
        with ExitStack() as stack:
            servers = [stack.enter_context(running(command, folder)) for command in pair]
            measured |= {server.name: Measured() for server in servers}
            for number in range(-1, plan.rounds):  # the first round pays for lazy set-up and does not count
                for server in servers[:: 1 if number % 2 else -1]:
                    with server.alone(servers):
                        ask_round(server, measured[server.name] if number >= 0 else Measured(), plan.tokens, numbers)
            for server in servers:
                measured[server.name].resident_mb = server.resident_mb()
    return measured


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the rounds' ratios: what slows a round down slows both."""
    return median([one / other for one, other in zip(over, under, strict=True)])


def aims_of(shape: str, measured: dict[str, Measured]) -> Iterator[Aim]:
    """What Onsight leaves of llama.cpp's speed."""
    for kind, threads in WAYS:
        own, ours = (measured[name_of(kind, threads, way)] for way in ("alone", "through Onsight"))
        for count in REQUESTS:
            reached = _ratio(ours.writes[count], own.writes[count])
            title = f"{shape}: tokens/s through Onsight of {kind} alone, {threads} thread(s), {count} request(s)"
            yield Aim(title, THROUGH, reached, "x", at_least=True)


def report(measured: dict[str, dict[str, Measured]], plan: Plan) -> Report:
    """A table a shape, one row a way."""
    columns = ("way", "reading, tokens/s", *(f"writing, {count} request(s)" for count in REQUESTS), "resident, MB")
    tables = tuple(
        Table(
            shape,
            columns,
            tuple(
                (name, median(one.reads), *(median(one.writes[count]) for count in REQUESTS), one.resident_mb)
                for name, one in ways.items()
            ),
        )
        for shape, ways in measured.items()
    )
    notes = (
        f"Random weights; {plan.rounds} rounds after one that does not count. In each both servers of a pair do"
        " everything once while the other is stopped: ratios are taken of neighbours in time.",
        f"Writing: text prompts, {plan.tokens} tokens each; tokens/s of each answer from its first token on, summed."
        " Reading: a text prompt until its first token.",
        f"{THREADS} threads and {SLOTS} slots on every side, on as many cores: what Onsight computes for each token is"
        " taken from llama.cpp, the more of it the more tokens a second there are. With 1 thread a core is left for"
        " Onsight and the client, as it is on machines with more cores. Products in Q8_0 or"
        f" {MIXTURE}, the part that sees in half floats; published weights are bfloat16. {MIXTURE} is written by"
        " training/export_gguf.py, in the layout and choice of kinds of llama.cpp: where 256 does not divide a width,"
        " Q5_0 stands for Q4_K and Q8_0 for Q6_K.",
    )
    details: dict[str, object] = {
        f"{shape}, {name}": [one.reads, one.writes] for shape, ways in measured.items() for name, one in ways.items()
    }
    aims = tuple(aim for shape, ways in measured.items() for aim in aims_of(shape, ways))
    return Report("llama", "llama.cpp through Onsight and alone", aims, tables, notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(DEFAULT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    plan = Plan(arguments.rounds, arguments.tokens)
    measured = {}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as temporary:
            measured[shape] = measure(shape, Path(temporary), plan)
    publish(report(measured, plan), arguments.out)


if __name__ == "__main__":
    main()
