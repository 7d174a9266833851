"""The commands of docs/search.md run as they stand, one after the other, on a folder of pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import RunCommand
from tests.cli.conftest import run as run
from training.evaluate_leaf import FIRST_SEED, STYLE
from training.pages import draw_page

pytestmark = pytest.mark.model

DOCUMENT = Path(__file__).parents[1] / "docs" / "search.md"
COMMANDS = re.findall(r"^\$ onsight (.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)


def test_each_command_does_what_it_says(run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra `search`")
    (tmp_path / "pages").mkdir()
    for number in (5, 8):
        draw_page(FIRST_SEED + 50_000 + number, STYLE).image.save(tmp_path / "pages" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        done = run(*shlex.split(command))
        assert done.code == 0, f"{command}: {done.err}"
        if command.startswith("search"):
            assert "8.png" in done.out.splitlines()[0]
    made = sorted(str(file.relative_to(tmp_path)) for file in [*tmp_path.glob("*"), *tmp_path.glob("found/*")])
    assert made == sorted(
        ["found", "found/1-8.png", "found/2-5.png", "onsight-index", "pages", "pages.npz", "pages.parquet"]
    )
