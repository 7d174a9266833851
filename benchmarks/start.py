"""From the command to the first possible answer, and how much memory the server takes.

python -m benchmarks.start [--model FOLDER] [--starts N]
python -m benchmarks.start --both [--starts N]    as `make serve` starts it: both bundled models and the page
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.client import ask_all, question
from benchmarks.report import Aim, Report, Table, median, publish
from benchmarks.screens import png, screens
from benchmarks.server import Command, model_folder, onsight, running

REQUESTS = 64
CLIENTS = 8
TOKENS = 32


@dataclass(frozen=True, slots=True)
class Setup:
    """What is started, and what is wanted of it. `embeds`: it makes vectors too, and has the page."""

    command: Command
    name: str
    title: str
    wanted_s: float
    wanted_mb: float
    embeds: bool = False


def alone(model: str) -> Setup:
    """One model, without anything else."""
    command = onsight(str(model_folder(model)))
    return Setup(command, "start", "Start and memory with the bundled model alone", 8.0, 900.0)


def both() -> Setup:
    """Both bundled models and the page."""
    command = Command("Onsight", ("-m", "onsight", "serve", "--ui", "--port", "{port}"), "/ready")
    return Setup(command, "start_both", "Start and memory with both bundled models and the page", 12.0, 1300.0, True)


def measure(setup: Setup, starts: int, logs: Path) -> tuple[list[float], list[float], list[float]]:
    """(seconds from start to ready, MiB when ready, MiB after the requests) of every start."""
    started_s, ready_mb, used_mb = [], [], []
    pictures = [png(screen) for screen in itertools.islice(screens(), REQUESTS)]
    bodies = [question(picture, "Read the screen.", tokens=TOKENS) for picture in pictures]
    for _ in range(starts):
        with running(setup.command, logs) as server:
            started_s.append(server.start_s)
            ready_mb.append(server.resident_mb())
            asyncio.run(ask_all(server.url, bodies, CLIENTS))
            if setup.embeds:
                embed_and_visit(server.url, pictures)
            used_mb.append(server.resident_mb())
    return started_s, ready_mb, used_mb


def embed_and_visit(url: str, pictures: Sequence[bytes]) -> None:
    """Have each picture made into vectors, as many in a request as a server takes, and look at the page once."""
    with httpx.Client(base_url=url, timeout=120.0, trust_env=False) as client:
        for start in range(0, len(pictures), 32):
            parts = [{"image": base64.b64encode(picture).decode()} for picture in pictures[start : start + 32]]
            client.post("/v1/embeddings", json={"input": parts, "encoding_format": "base64"}).raise_for_status()
        client.get("/ui", follow_redirects=True).raise_for_status()


def report(setup: Setup, started_s: list[float], ready_mb: list[float], used_mb: list[float]) -> Report:
    """Medians and extremes over the starts."""
    named = (
        ("start to ready, s", started_s),
        ("resident memory when ready, MiB", ready_mb),
        (f"resident memory after {REQUESTS} requests, MiB", used_mb),
    )
    rows = tuple((name, median(values), min(values), max(values)) for name, values in named)
    aims = (
        Aim("start to ready (median)", setup.wanted_s, median(started_s), "s"),
        Aim(f"resident memory after {REQUESTS} requests (most)", setup.wanted_mb, max(used_mb), "MiB"),
    )
    notes = (
        f"{len(started_s)} starts of `onsight serve` with default settings, one after the other; the first one may find"
        " its files not yet in the system's cache. Ready is when `/ready` answers 200, asked every 10 ms.",
        f"The requests are about different screens of 256x256 px, {CLIENTS} clients at once, at most {TOKENS} tokens of"
        " answer. Resident memory is that of the process and its children, shared pages included.",
    )
    if setup.embeds:
        notes += (f"Then the same {REQUESTS} screens were made into vectors, 32 a request, and the page was opened.",)
    details: dict[str, object] = {"started_s": started_s, "ready_mb": ready_mb, "used_mb": used_mb}
    table = Table("Figures", ("figure", "median", "least", "most"), rows)
    return Report(setup.name, setup.title, aims, (table,), notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    what.add_argument("--both", action="store_true", help="both bundled models and the page, as `make serve` does")
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        setup = both() if arguments.both else alone(arguments.model)
        measured = measure(setup, arguments.starts, Path(temporary))
    publish(report(setup, *measured))


if __name__ == "__main__":
    main()
