"""The table of clients is of the clients that are pinned, and whole."""

from __future__ import annotations

from tests.clients.runs import CLIENTS, FEATURES, Outcome
from tests.clients.table import PATH, render, versions


def test_the_table_in_the_repository_has_every_client_and_no_failure() -> None:
    text = PATH.read_text("utf-8")
    assert versions() in text
    for client in CLIENTS:
        assert f"| {client} | " in text
    assert "## Failed" not in text


def test_a_cell_counts_what_ran_and_every_other_test_has_its_reason() -> None:
    found = [
        Outcome("tools", "one", "passed", ""),
        Outcome("tools", "two", "beyond", "it cannot"),
        Outcome("tools", "three", "skipped", "not asked."),
        Outcome("chat", "four", "failed", "it broke\nhere"),
    ]
    lines = render({"sdk": found}, [("commit", "abc")]).splitlines()
    row = next(line for line in lines if line.startswith("| sdk"))
    cells = dict(zip(FEATURES, row.strip("| ").split(" | ")[1:], strict=True))
    assert (cells["tools"], cells["chat"], cells["images"]) == ("1 of 2", "0 of 1", "–")
    assert "- sdk: it cannot: `two`." in lines
    assert "- sdk: not asked: `three`." in lines
    assert "- sdk: it broke: `four`." in lines
