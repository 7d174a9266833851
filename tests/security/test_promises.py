"""Each promise of docs/security.md names its tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def promises() -> list[str]:
    """The rows of every table that has a column of tests."""
    tables = re.split(r"\n\n", (ROOT / "docs" / "security.md").read_text("utf-8"))
    rows = [table.splitlines()[2:] for table in tables if table.startswith("| Promise | How | Test |")]
    return [row for table in rows for row in table]


def test_every_promise_names_tests_that_exist() -> None:
    lacking, above = [], ""
    for row in promises():
        tests = row.rstrip(" |").rpartition("|")[2].strip()
        tests = above if tests == "the same" else tests
        above = tests
        found = NAMED.findall(tests)
        missing = [f"{file}::{name}" for file, name in found if not _has(ROOT / file, name)]
        if missing or not found:
            lacking.append((row, missing))
    assert lacking == []
    assert len(promises()) > 20


def _has(file: Path, name: str) -> bool:
    if not file.is_file():
        return False
    tree = ast.parse(file.read_text("utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return any(each.startswith("test_") for each in functions) and (not name or name in functions)
