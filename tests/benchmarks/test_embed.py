"""The embedding benchmark on a tiny model: both sides are measured, and every aim has a figure."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from benchmarks import embed
from tests.tiny_colqwen import write_colqwen

pytestmark = pytest.mark.model


def test_every_aim_has_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "FLAT_PAGES", 200)
    monkeypatch.setattr(embed, "SEARCHES", 2)
    monkeypatch.setattr(embed, "PAGE_PX", (120, 160))
    folder = write_colqwen(tmp_path / "model", layout="current")
    rates, memory, page = asyncio.run(embed.measure(folder, pages=3, queries=4, rounds=2))
    sides = {(name, count) for name in ("Onsight", "plain loop") for count in (1, 8, 32)}
    assert set(rates.pages) == set(rates.queries) == sides
    assert all(len(rounds) == 2 and min(rounds) > 0 for of in (rates.pages, rates.queries) for rounds in of.values())
    assert len(memory) == 2
    searches = embed.search(40)
    assert [one.form for one in searches] == ["f32", "int8"]
    assert searches[0].recall == 1.0
    assert searches[1].recall >= 0.8
    made = embed.report(rates, memory, page, searches, 40)
    assert len(made.aims) == 5
    (alone, best) = (aim.reached for aim in made.aims if "queries" in aim.what)
    loop = {count: statistics.median(rounds) for (name, count), rounds in rates.queries.items() if name == "plain loop"}
    assert alone / best == pytest.approx(max(loop.values()) / loop[1])
    assert all(aim.reached > 0 for aim in made.aims)
    sizes = {row[0]: row[1:] for row in made.tables[2].rows}
    raw = {dtype: row[2] for dtype, row in sizes.items()}
    assert page.rows * 128 * 4 < raw["f32"] < page.rows * 128 * 4 + 500
    assert page.rows * 16 < raw["binary"] < page.rows * 16 + 500
