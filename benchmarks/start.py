"""From the command to the first possible answer, and how much memory the server takes.

python -m benchmarks.start [--model FOLDER] [--starts N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
from pathlib import Path

from benchmarks.client import ask_all, question
from benchmarks.report import Aim, Report, Table, median, publish
from benchmarks.screens import png, screens
from benchmarks.server import model_folder, onsight, running

REQUESTS = 64
CLIENTS = 8
TOKENS = 32
WANTED_S = 8.0
WANTED_MB = 900.0


def measure(folder: Path, starts: int, logs: Path) -> tuple[list[float], list[float], list[float]]:
    """(seconds from start to ready, MiB when ready, MiB after the requests) of every start."""
    started_s, ready_mb, used_mb = [], [], []
    pictures = [png(screen) for screen in itertools.islice(screens(), REQUESTS)]
    bodies = [question(picture, "Read the screen.", tokens=TOKENS) for picture in pictures]
    for _ in range(starts):
        with running(onsight(str(folder)), logs) as server:
            started_s.append(server.start_s)
            ready_mb.append(server.resident_mb())
            asyncio.run(ask_all(server.url, bodies, CLIENTS))
            used_mb.append(server.resident_mb())
    return started_s, ready_mb, used_mb


def report(started_s: list[float], ready_mb: list[float], used_mb: list[float]) -> Report:
    """Medians and extremes over the starts."""
    named = (
        ("start to ready, s", started_s),
        ("resident memory when ready, MiB", ready_mb),
        (f"resident memory after {REQUESTS} requests, MiB", used_mb),
    )
    rows = tuple((name, median(values), min(values), max(values)) for name, values in named)
    aims = (
        Aim("start to ready (median)", WANTED_S, median(started_s), "s"),
        Aim(f"resident memory after {REQUESTS} requests (most)", WANTED_MB, max(used_mb), "MiB"),
    )
    notes = (
        f"{len(started_s)} starts of `onsight serve` with default settings, one after the other; the first one may find"
        " its files not yet in the system's cache. Ready is when `/ready` answers 200, asked every 10 ms.",
        f"The requests are about different screens of 256x256 px, {CLIENTS} clients at once, at most {TOKENS} tokens of"
        " answer. Resident memory is that of the process and its children, shared pages included.",
    )
    details: dict[str, object] = {"started_s": started_s, "ready_mb": ready_mb, "used_mb": used_mb}
    table = Table("Figures", ("figure", "median", "least", "most"), rows)
    return Report("start", "Start and memory with the bundled model alone", aims, (table,), notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measured = measure(model_folder(arguments.model), arguments.starts, Path(temporary))
    publish(report(*measured))


if __name__ == "__main__":
    main()
