"""What benchmarks write down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Aim, Report, Table, publish, quantile


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([1.0, 2.0, 3.0], 1.0) == 3.0
    assert quantile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("aim", "met"), [(Aim("x", 5, 5.1, "x", at_least=True), True), (Aim("x", 50, 51, "ms"), False)]
)
def test_an_aim_is_met_on_its_own_side_of_the_bound(aim: Aim, met: bool) -> None:
    assert aim.met is met


def test_a_report_says_on_what_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Figures", ("server", "requests/s"), (("Onsight", 12.345),))
    publish(
        Report("made_up", "A title", (Aim("speed", 5.0, 6.0, "x", at_least=True),), (table,), ("A note.",)), tmp_path
    )
    text = (tmp_path / "made_up.md").read_text("utf-8")
    assert "| speed | at least 5x | 6x | yes |" in text
    assert "| Onsight | 12.3 |" in text
    assert text in capsys.readouterr().out
    whole = json.loads((tmp_path / "made_up.json").read_text("utf-8"))
    assert {"processor", "memory", "commit", "command", "packages"} <= set(whole["facts"])
    assert whole["aims"][0]["met"] is True
