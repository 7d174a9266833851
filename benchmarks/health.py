"""How long `/health` takes while clients send pictures of 3840x2160 px.

python -m benchmarks.health [--model FOLDER] [--seconds N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import ask, connect, question
from benchmarks.report import Aim, Cell, Report, Table, publish, quantile
from benchmarks.screens import wide_screens
from benchmarks.server import ROOT, RunningServer, model_folder, onsight, running

CLIENTS = 8
TOKENS = 8
WANTED_MS = 50.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients had done when the time was over: answers, and seconds since the first request."""

    answers: int
    seconds: float


def probe(server: RunningServer, seconds: float) -> subprocess.Popen[str]:
    """Start asking `/health` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.probe", f"{server.url}/health", str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def collect(probing: subprocess.Popen[str], timeout_s: float) -> list[float]:
    """What a probe measured, in milliseconds."""
    try:
        printed, _ = probing.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        probing.kill()
        raise
    return [float(value) for value in json.loads(printed)]


async def send(server: RunningServer, bodies: Sequence[bytes], seconds: float) -> Load:
    """Let the clients send pictures for so long, each one request after the other; running ones are answered."""
    waiting = itertools.cycle(bodies)
    answers = 0
    began_s = time.perf_counter()
    async with connect(server.url, CLIENTS) as client:

        async def work() -> None:
            nonlocal answers
            while time.perf_counter() - began_s < seconds:
                await ask(client, next(waiting))
                answers += 1

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return Load(answers, time.perf_counter() - began_s)


def measure(server: RunningServer, pictures: Sequence[bytes], seconds: float) -> tuple[list[float], list[float], Load]:
    """(milliseconds of `/health` on the idle server, milliseconds under load, the load)."""
    bodies = [question(picture, "Read the screen.", tokens=TOKENS) for picture in pictures]
    asyncio.run(send(server, bodies[:1], 0.1))
    idle = collect(probe(server, seconds / 4), seconds + 30)
    probing = probe(server, seconds)
    load = asyncio.run(send(server, bodies, seconds))
    return idle, collect(probing, seconds + 30), load


def report(idle: list[float], busy: list[float], load: Load, pictures: Sequence[bytes]) -> Report:
    """One row without and one with the load."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, len(took), *_figures(took)) for name, took in (("idle", idle), ("under load", busy))
    )
    columns = ("server", "requests", "p50, ms", "p95, ms", "p99, ms", "slowest, ms")
    sizes = [len(picture) / 2**20 for picture in pictures]
    notes = (
        f"{CLIENTS} clients sent {load.answers} pictures in {load.seconds:.1f} s, out of {len(pictures)} different PNG"
        f" files of 3840x2160 px ({min(sizes):.1f} to {max(sizes):.1f} MiB) that were drawn beforehand; each client"
        " waits for its answer before it sends the next.",
        "`/health` was asked by another process, on a new connection each time, every 10 ms; connecting counts.",
        "The server, the clients and the asking process share the machine's cores.",
    )
    aim = Aim("/health p99 under load", WANTED_MS, quantile(busy, 0.99), "ms")
    details: dict[str, object] = {"idle_ms": idle, "under_load_ms": busy}
    title = "/health while eight clients send 4K screens"
    return Report("health", title, (aim,), (Table("Figures", columns, rows),), notes, details)


def _figures(took_ms: list[float]) -> tuple[float, ...]:
    return (*(quantile(took_ms, share) for share in (0.5, 0.95, 0.99)), max(took_ms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the load lasts")
    parser.add_argument("--pictures", type=int, default=32, help="how many different files are sent")
    arguments = parser.parse_args()
    pictures = wide_screens(arguments.pictures)
    with tempfile.TemporaryDirectory() as temporary:
        command = onsight(str(model_folder(arguments.model)))
        with running(command, Path(temporary)) as server:
            idle, busy, load = measure(server, pictures, arguments.seconds)
    publish(report(idle, busy, load, pictures))


if __name__ == "__main__":
    main()
