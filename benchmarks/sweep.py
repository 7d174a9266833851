"""`onsight caption FOLDER` as it is, beside the same command with one picture at a time.

python -m benchmarks.sweep [--model FOLDER] [--rounds N] [--pictures N]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from benchmarks.report import Aim, Report, Table, median, publish
from benchmarks.screens import png, screens
from benchmarks.server import model_folder, onsight, running
from onsight.cli import commands

PICTURES = 64
WARM_UP = 8
WANTED = 4.0


def fill(folder: Path, pictures: Iterator[Image.Image], count: int) -> Path:
    """A new folder in `folder` with the next `count` pictures as files."""
    made = Path(tempfile.mkdtemp(dir=folder))
    for number, picture in enumerate(itertools.islice(pictures, count)):
        (made / f"{number:03}.png").write_bytes(png(picture))
    return made


def sweep(folder: Path, url: str, at_once: int | None) -> float:
    """Seconds in which the command answers about every picture. Raises RuntimeError when it fails."""
    words = ["caption", str(folder), "--url", url, "--json"]
    if at_once is not None:
        words += ["--at-once", str(at_once)]
    began_s = time.perf_counter()
    done = CliRunner().invoke(commands, words)
    took_s = time.perf_counter() - began_s
    told = done.stdout.count("\n")
    if done.exit_code or told != len(list(folder.iterdir())):
        raise RuntimeError(f"onsight {' '.join(words)} ended with {done.exit_code} and {told} answers: {done.stderr}")
    return took_s


def measure(model: Path, rounds: int, count: int) -> tuple[list[float], list[float]]:
    """(seconds one at a time, seconds as the command does it) of each round; the two take turns at being first."""
    alone_s, usual_s = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary), screens()
        with running(onsight(str(model)), folder) as server:
            sweep(fill(folder, pictures, WARM_UP), server.url, None)
            for number in range(rounds):
                for alone in (True, False) if number % 2 == 0 else (False, True):
                    took_s = sweep(fill(folder, pictures, count), server.url, 1 if alone else None)
                    (alone_s if alone else usual_s).append(took_s)
    return alone_s, usual_s


def report(alone_s: list[float], usual_s: list[float], count: int) -> Report:
    """Medians and extremes over the rounds; the ratio is that of each round's two."""
    ratios = [alone / usual for alone, usual in zip(alone_s, usual_s, strict=True)]
    named = (
        ("one at a time, pictures/s", [count / took for took in alone_s]),
        ("as the command does it, pictures/s", [count / took for took in usual_s]),
        ("ratio", ratios),
    )
    rows = tuple((name, median(values), min(values), max(values)) for name, values in named)
    aims = (Aim("`onsight caption FOLDER` over one picture at a time (median)", WANTED, median(ratios), "x", True),)
    notes = (
        f"{len(ratios)} rounds of {count} different screens of 256x256 px each way, after {WARM_UP} that do not count;"
        " no picture comes twice. The command asks a running server with default settings, so that loading the model is"
        " in neither time. One at a time is the same command with `--at-once 1`.",
    )
    details: dict[str, object] = {"alone_s": alone_s, "usual_s": usual_s}
    table = Table("Figures", ("figure", "median", "least", "most"), rows)
    return Report("sweep", "One question about a folder of pictures", aims, (table,), notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    arguments = parser.parse_args()
    measured = measure(model_folder(arguments.model), arguments.rounds, arguments.pictures)
    publish(report(*measured, arguments.pictures))


if __name__ == "__main__":
    main()
