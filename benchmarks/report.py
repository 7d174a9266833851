"""What a benchmark writes down: figures, aims, and everything that one must know to read them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

LOCAL_CHANGES = " with local changes"
"""Ends the name of a commit from which the sources differ."""
_PACKAGES = ("onsight", "torch", "transformers", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True)
class Aim:
    """Something to reach: `reached` is to be at most (or, with `at_least`, at least) `wanted`; both in `unit`."""

    what: str
    wanted: float
    reached: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


Cell = str | float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one kind, as they are printed; `title` says what is in them, with units in the column names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's outcome. `notes`: sentences on how it was measured. `details`: raw figures, for the JSON."""

    name: str
    title: str
    aims: tuple[Aim, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, object] = field(default_factory=dict)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def publish(report: Report, folder: Path = RESULTS, facts: dict[str, str] | None = None) -> None:
    """Print the report, and write it to `folder` as NAME.md and NAME.json. `facts`: where another run measured it."""
    facts = facts or _facts()
    text = _markdown(report, facts, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report.name}.md").write_text(text, "utf-8")
    whole = asdict(report) | {"facts": facts}
    whole["aims"] = [asdict(aim) | {"met": aim.met} for aim in report.aims]
    (folder / f"{report.name}.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(text)


def _markdown(report: Report, facts: dict[str, str], folder: Path) -> str:
    guide = os.path.relpath(ROOT / "benchmarks" / "README.md", folder)
    parts = [f"# {report.title}", f"Written by the benchmark itself; see [how to read it]({guide})."]
    if report.aims:
        parts.append(aims_table(report.aims))
    for table in report.tables:
        parts += [f"## {table.title}", _table(table)]
    if report.notes:
        parts += ["## How it was measured", "\n".join(f"- {note}" for note in report.notes)]
    parts += ["## On what", _table(Table("", ("", ""), tuple(facts.items())))]
    return "\n\n".join(parts) + "\n"


def aims_table(aims: Sequence[Aim]) -> str:
    """Wanted beside reached, as Markdown."""
    rows = [(aim.what, _bound(aim), _shown(aim.reached, aim.unit), "yes" if aim.met else "**no**") for aim in aims]
    return _table(Table("", ("aim", "wanted", "reached", "met"), tuple(rows)))


def _bound(aim: Aim) -> str:
    return ("at least " if aim.at_least else "at most ") + _shown(aim.wanted, aim.unit)


def _shown(value: Cell, unit: str = "") -> str:
    if isinstance(value, str):
        return value
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{' ' if unit and unit not in '%x' else ''}{unit}"


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(_shown(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _facts() -> dict[str, str]:
    """The machine, the code and the command."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load average at the end (1, 5, 15 min)": load,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "commit": commit(),
        "command": f"`{_command()}`",
        "date": date(),
    }


def _processor() -> str:
    """The processor's name as the system gives it; behind a hypervisor it may be a family's name only."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in facts.items()}
    place = f"family {named.get('cpu family', '?')}, model {named.get('model', '?')}"
    return f"{named.get('model name', platform.machine())} ({place})"


def date() -> str:
    """Now, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """The short commit, and whether the sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py", "benchmarks/peers")
        return git("rev-parse", "--short=12", "HEAD") + (LOCAL_CHANGES if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"


def _command() -> str:
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec is not None else sys.argv[0]
    return shlex.join(["python", "-m", name, *sys.argv[1:]])
