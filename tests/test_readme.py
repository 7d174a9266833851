"""Every block of the README runs, and prints what the README says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.readme import MAKE, README, ROOT, Block, blocks, commands, matches, run, run_python
from tests.servers import Served, served

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {block.language for block in blocks()} <= {"console", "python"}
    assert README.read_text("utf-8").count("```") == 2 * len(blocks())


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.text.splitlines()[0][:50])
def test_the_block_prints_what_the_readme_says(block: Block, server: Served) -> None:
    if block.language == "python":
        run_python(block.text, server.url)
        return
    for command in commands(block):
        if command.line in MAKE:
            planned = subprocess.run(
                ["make", "-n", command.line.split()[1]], cwd=ROOT, capture_output=True, text=True, check=True
            )
            assert MAKE[command.line] in planned.stdout
            if command.line == "make serve":
                assert matches(command.printed, re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", server.log().strip()))
            continue
        assert matches(command.printed, run(command.line, server.url)), run(command.line, server.url)


def test_every_relative_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", README.read_text("utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_measured_number_of_the_readme_stands_in_a_results_file() -> None:
    table = README.read_text("utf-8").split("## Measured")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows
    results = "".join(
        path.read_text("utf-8")
        for folder in ("benchmarks/results", "docs/results")
        for path in (ROOT / folder).glob("*.md")
    )
    reached = [number for row in rows for number in re.findall(r"\d+(?:\.\d+)?", row.split("|")[2])]
    assert reached
    assert [number for number in reached if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", results)] == []
