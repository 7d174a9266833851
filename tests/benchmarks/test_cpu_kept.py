"""The CPU's benchmark with figures that are made up: which of an earlier run stand, and the report on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cpu
from benchmarks.cpu import Found, Measured, parse, report

MADE_UP = Found({1: 10.0, 4: 40.0}, {1: 2.0, 4: 8.0}, None, 4.0, 1.0, 4 << 30, 3 << 30, 5 << 30, 4 << 30, 2)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the benchmark at a commit: (how many sides it measured, its notes)."""
    measured: list[str] = []

    def in_child(side: str, *rest: object) -> Found:
        measured.append(side)
        return MADE_UP

    monkeypatch.setattr(cpu, "in_child", in_child)
    monkeypatch.setattr(cpu, "write_shape", lambda shape, folder: folder.mkdir())

    def at(commit: str, *flags: str) -> tuple[int, str]:
        measured.clear()
        monkeypatch.setattr(cpu, "commit", lambda: commit)
        given = ["--shapes", "tiny-smolvlm", "--sides", "float32", "int4"]
        cpu.main([*given, "--models", str(tmp_path), "--out", str(tmp_path), *flags])
        told = json.loads((tmp_path / "cpu.json").read_text())
        return len(measured), " ".join(told["notes"])

    return at


def test_figures_of_another_commit_are_measured_anew_unless_they_are_to_be_kept(run: Run) -> None:
    count, notes = run("aaaa")
    assert (count, "Kept" in notes) == (2, False)
    count, notes = run("aaaa")  # as a run that was cut goes on
    assert (count, "at commit aaaa: tiny-smolvlm float32 (20" in notes) == (0, True)
    count, notes = run("bbbb", "--keep")
    assert (count, "at commit aaaa: tiny-smolvlm float32 (20" in notes) == (0, True)
    count, notes = run("bbbb")
    assert (count, "Kept" in notes) == (2, False)
    assert run("bbbb with local changes")[0] == 2
    assert run("bbbb with local changes")[0] == 2  # they may be others


def test_what_is_kept_stands_though_it_would_not_fit_now(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("aaaa")
    monkeypatch.setattr(cpu, "SPARE_BYTES", 1 << 60)
    count, notes = run("aaaa")
    assert (count, "left out" in notes) == (0, False)


def test_the_first_token_in_4_bits_has_its_aim_too() -> None:
    figures = {"float32": 3.0, "int4": 1.0, "q8_0": 4.0}
    measured = {
        ("tiny", side): Measured(replace(MADE_UP, first_s=first_s), "aaaa", "today")
        for side, first_s in figures.items()
    }
    made = report(measured, [], parse([]))
    assert {aim.what.split(", ")[1]: (aim.reached, aim.met) for aim in made.aims[1:]} == {
        "float32 beside q8_0": (0.75, False),
        "int4 beside q8_0": (0.25, True),
    }
    assert made.details["tiny, int4"]["commit"] == "aaaa"  # type: ignore[index]


def test_a_report_is_written_anew_out_of_its_own_figures(run: Run, tmp_path: Path) -> None:
    run("aaaa")
    path = tmp_path / "cpu.json"
    whole = json.loads(path.read_text())
    assert [aim["what"] for aim in whole["aims"]] == ["tiny-smolvlm: int4 writes, beside float32, one request"]
    path.write_text(json.dumps({**whole, "aims": [], "facts": {"commit": "the one measured"}}))
    cpu.main(["--render", "--out", str(tmp_path)])
    assert json.loads(path.read_text()) == {**whole, "facts": {"commit": "the one measured"}}
    assert "the one measured" in (tmp_path / "cpu.md").read_text()
