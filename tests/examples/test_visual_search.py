"""The search example draws its booklet, asks a real server with the bundled retriever, and finds the right page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedders import served_embedder
from training.leaf import LEAF

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "visual_search.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_embedder(LEAF) as address:
        yield address


@pytest.mark.parametrize(
    ("query", "page"), [("which page is about the mariner?", 1), ("telescope", 3), ("the drug and the clinic", 2)]
)
def test_the_right_page_comes_first(url: str, query: str, page: int) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), query, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert f"page {page}: " in first
    assert len(others) == 3


def test_it_has_fewer_than_thirty_lines() -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 30
