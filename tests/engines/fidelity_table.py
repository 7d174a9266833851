"""Runs the tests that compare with a reference, and writes what they noted into docs/results/fidelity.md.

python -m tests.engines.fidelity_table [--path FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest

from tests.engines.fidelity import CHECKS, FAMILIES, TOLERANCE, columns

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "results" / "fidelity.md"
NOT_ASKED = "–"
_PACKAGES = ("onsight", "torch", "transformers", "tokenizers", "pillow")

_TITLE = "# Fidelity: how far our answers are from the reference's"
_TOP = f"""\
Written by `make fidelity`; do not edit. Each number is the largest absolute difference of any logit at any generated
position, in float32 on the CPU, over all requests of that check; the token ids of prompt and answer are compared too,
and must be equal. Nothing may be over {TOLERANCE:g}."""
_MODELS = """\
The models are tiny and random, made from the families' own configuration classes, with weights drawn so wide that
another picture gives another answer (the tests assert it); pictures are solid shapes. The references are"""
_CHECKS = """\
transformers' models are fed by its own image processors, the ones on Pillow. "batch mates" compares our answers alone
with our answers among others. "pixels of 30 sizes" compares prepared pixels, at the published models' picture
settings, and how many tokens stand for them. ColQwen2.5's numbers are differences of vectors of length 1, from a
reference that colpali_engine's own vectors agree with (tests/colpali_vectors.py)."""

Largest = dict[tuple[str, str], float]
"""By (column, check)."""


class Collector:
    """A pytest plugin: keeps the largest difference that tests noted for each column and check."""

    def __init__(self) -> None:
        self.largest: Largest = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or not report.passed:
            return
        for name, value in report.user_properties:
            if name == "fidelity":
                column, check, difference = value
                self.largest[column, check] = max(difference, self.largest.get((column, check), 0.0))


def rows() -> list[str]:
    """Every check that some column has, in order: the chat families' first."""
    others = (check for checks in columns().values() for check in checks)
    return list(dict.fromkeys((*CHECKS, *others)))


def missing(largest: Largest) -> list[tuple[str, str]]:
    """What should have been noted and was not."""
    return [(name, check) for name, checks in columns().items() for check in checks if (name, check) not in largest]


def render(largest: Largest, facts: Sequence[tuple[str, str]]) -> str:
    """The page."""
    names = list(columns())
    body = [
        (check, *(_cell(largest.get((name, check)) if check in columns()[name] else None) for name in names))
        for check in rows()
    ]
    sources = [f"- {kind.title}: {kind.source}." for kind in FAMILIES.values()]
    parts = [[_TITLE], [_TOP], _table(("check", *names), body), [_MODELS], sources, [_CHECKS], _table(("", ""), facts)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _cell(value: float | None) -> str:
    return NOT_ASKED if value is None else "0" if value == 0 else f"{value:.1e}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def read(text: str) -> Largest:
    """The numbers of a page; cells that were not asked for are left out. The opposite of `render`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    start = next(place for place, cells in enumerate(lines) if cells[0] == "check")
    names = lines[start][1:]
    largest: Largest = {}
    for cells in lines[start + 2 :]:
        if len(cells) != len(names) + 1:
            break
        for name, cell in zip(names, cells[1:], strict=True):
            if cell != NOT_ASKED:
                largest[name, cells[0]] = float(cell)
    return largest


def facts() -> list[tuple[str, str]]:
    """The code, its libraries, and when."""
    return [
        ("commit", _commit()),
        ("packages", ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("command", "`python -m tests.engines.fidelity_table`"),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d")),
    ]


def _commit() -> str:
    """The short commit, and whether code or tests differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "tests")
        return git("rev-parse", "--short=12", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=PATH)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    collector = Collector()
    failed = pytest.main(["tests/engines", "-m", "fidelity"], plugins=[collector])
    if failed:
        print("nothing is written: a test failed", file=sys.stderr)
        return int(failed)
    if missing(collector.largest):
        print(f"nothing is written: no test noted {missing(collector.largest)}", file=sys.stderr)
        return 1
    text = render(collector.largest, facts())
    arguments.path.write_text(text, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
