"""llama.cpp through Onsight, llama.cpp alone, and the torch engine, on the same random weights of a published shape.

python -m benchmarks.llama [--shape NAME] [--rounds N] [--tokens N]
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

from benchmarks.client import Answer, ask_all, chat_body, question
from benchmarks.report import Aim, Cell, Report, Table, median, publish
from benchmarks.screens import png, screens
from benchmarks.server import Command, RunningServer, onsight, running
from benchmarks.shapes import SHAPES, write_shape
from training.export_gguf import MIXTURE, export_gguf

KINDS = ("Q8_0", MIXTURE)
REQUESTS = (1, 4)
SLOTS, THREADS = 4, 2
WORDS = "say what you see in this picture, and where; "
THROUGH, FIRST = 0.97, 0.5


@dataclass(slots=True)
class Measured:
    """A side's figures, one a round: `rates` in tokens/s by requests at once, `firsts` in seconds."""

    rates: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in REQUESTS})
    firsts: list[float] = field(default_factory=list)


def alone(model: Path, mmproj: Path, kind: str, context: int) -> Command:
    """llama.cpp's own server."""
    bounds = ("--threads", str(THREADS), "--slots", str(SLOTS), "--context", str(context))
    arguments = ("-m", "benchmarks.peers.llama_server", str(model), str(mmproj), "{port}", *bounds)
    return Command(f"llama.cpp {kind} alone", arguments, "/health")


def sides(shape: str, folder: Path) -> Iterator[Command]:
    """Every way to run `shape`, whose files are written into `folder`."""
    plain = write_shape(SHAPES[shape], folder / "plain")
    context = SHAPES[shape].context
    bounds = ("--threads", str(THREADS), "--max-num-seqs", str(SLOTS), "--max-model-len", str(context), "--no-ui")
    for kind in KINDS:
        model, mmproj = export_gguf(plain, folder / kind, shape, kind)
        yield alone(model, mmproj, kind, context)
        yield Command(f"llama.cpp {kind} through Onsight", onsight(str(model), *bounds).arguments, "/ready")
    for bits in ("none", "int4"):
        arguments = onsight(str(plain), *bounds, "--quantize", bits).arguments
        yield Command(f"torch, {'float32' if bits == 'none' else bits}", arguments, "/ready")


def rate(answers: Sequence[Answer]) -> float:
    """Tokens/s from the moment when the last of them began; the first token of each is the prompt's."""
    return sum((answer.tokens - 1) / (answer.total_s - answer.first_s) for answer in answers)


def measure(servers: Sequence[RunningServer], rounds: int, tokens: int) -> dict[str, Measured]:
    """Every round each server does everything once, the others stopped; who is first changes."""
    measured = {server.name: Measured() for server in servers}
    pictures, numbers = (png(screen) for screen in screens()), itertools.count()
    for number in range(-1, rounds):  # the first round pays for lazy set-up and does not count
        for server in [*servers[number % len(servers) :], *servers[: number % len(servers)]]:
            with server.alone(servers):
                told = measured[server.name] if number >= 0 else Measured()
                body = question(next(pictures), WORDS, tokens=2)
                (first,), _ = asyncio.run(ask_all(server.url, [body], 1))
                told.firsts.append(first.first_s)
                print(f"{server.name}, first token: {first.first_s:.2f} s", flush=True)
                for count in REQUESTS:
                    turns = [{"role": "user", "content": f"{next(numbers)} {WORDS * 4}"} for _ in range(count)]
                    bodies = [chat_body([turn], tokens=tokens) for turn in turns]
                    answers, _ = asyncio.run(ask_all(server.url, bodies, count))
                    told.rates[count].append(rate(answers))
                    print(f"{server.name}, {count} request(s): {told.rates[count][-1]:.1f} tokens/s", flush=True)
    return measured


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the rounds' ratios: what slows a round down slows both."""
    return median([one / other for one, other in zip(over, under, strict=True)])


def report(shape: str, measured: dict[str, Measured], memory_mb: dict[str, float], tokens: int) -> Report:
    """One row a side; Onsight's part in llama.cpp's speed, and the torch engine's first tokens, as aims."""
    aims = []
    for kind in KINDS:
        own, ours = measured[f"llama.cpp {kind} alone"], measured[f"llama.cpp {kind} through Onsight"]
        aims += [
            Aim(f"tokens/s through Onsight of {kind} alone, {count} request(s)", THROUGH, reached, "x", True)
            for count in REQUESTS
            if (reached := _ratio(ours.rates[count], own.rates[count]))
        ]
        sooner = _ratio(measured["torch, float32"].firsts, own.firsts)
        aims.append(Aim(f"seconds to the first token after a picture, torch of llama.cpp {kind}", FIRST, sooner, "x"))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, *(median(one.rates[count]) for count in REQUESTS), median(one.firsts), memory_mb[name])
        for name, one in measured.items()
    )
    columns = ("way", *(f"{count} request(s), tokens/s" for count in REQUESTS), "first token, s", "resident, MB")
    rounds = len(next(iter(measured.values())).firsts)
    notes = (
        f"{shape}, random weights; {rounds} rounds after one that does not count. In each every server does everything"
        " once while the others are stopped, so that ratios are taken between neighbours in time.",
        f"Writing: text prompts, {tokens} tokens each; tokens/s of each answer from its first token on, summed. First"
        " token: a 256x256 screen that nobody has seen, from sending the request on, drawn larger and cut into tiles as"
        " each side does it for this model.",
        f"{THREADS} threads, {SLOTS} slots of {SHAPES[shape].context} tokens on every side. Products in Q8_0 or"
        f" {MIXTURE}, the part that sees in half floats. {MIXTURE} is written by training/export_gguf.py, in the layout"
        " and choice of kinds of llama.cpp: where 256 does not divide a width, Q5_0 stands for Q4_K and Q8_0 for Q6_K.",
    )
    details: dict[str, object] = {name: [one.rates, one.firsts] for name, one in measured.items()}
    table = Table("Figures", columns, rows)
    return Report(
        "llama", "llama.cpp through Onsight and alone, beside the torch engine", tuple(aims), (table,), notes, details
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="SmolVLM2-256M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        logs = Path(temporary)
        servers = [stack.enter_context(running(command, logs)) for command in sides(arguments.shape, logs)]
        measured = measure(servers, arguments.rounds, arguments.tokens)
        memory_mb = {server.name: server.resident_mb() for server in servers}
    publish(report(arguments.shape, measured, memory_mb, arguments.tokens))


if __name__ == "__main__":
    main()
