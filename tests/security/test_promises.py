"""Each promise of docs/security.md and docs/reliability.md names its tests; each threat has its promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")

THREATS = {
    "internal addresses are fetched": "Nothing inside is fetched",
    "a library fetches by itself": "There is no other door",
    "limits come after reading": "Limits hold while bytes come in",
    "decompression bombs": "A small file does not become a large picture",
    "frame bombs": "A short request does not become an endless video",
    "a decoder crashes": "A decoder that crashes, hangs or eats memory costs one request",
    "leaky errors": "Errors say nothing of the inside",
    "tiny or odd images": "Tiny and thin pictures are refused",
    "the viewer sees another picture": "The model sees what the viewer sees",
    "cache collisions": "No picture is taken for another",
    "placeholder injection": "What a user types is text",
    "routes without a key": "With keys, nothing answers without one",
    "code in a model": "No code that comes with a model is run",
    "half a model": "Weights are whole, or refused with the tensors that are not",
    "malformed GGUF": "A malformed GGUF stops the start, not the machine",
    "floods": "A flood costs nothing but its refusals",
    "slow heads": "A head that never ends holds nothing for long",
    "slow bodies": "A body that comes too slowly or is too large is refused while it comes",
    "leaving clients": "Who leaves holds nothing",
    "stopping": "Stopping cuts nobody who was accepted",
    "stuck or dead engine": "An engine that is stuck or dead is told, and a dead child is started again",
    "log injection": "No value forges a line of the log, and no prompt is in it",
    "the page reads files": "The page reads its uploads and nothing else",
    "the page's library fetches": "Gradio, which the page is made of, fetches nothing",
    "the page asks others": "Neither the page nor a browser that shows it asks anybody else",
    "the page is sent what it is not made for": "What is posted to the page and is none of its events is refused",
    "uploads fill the disk": "Uploads do not fill the disk, or the memory under `--tmpfs /tmp`",
    "Ray": "A Ray cluster is closed",
}
"""What a vision server is attacked with, and the promise of docs/security.md that answers it."""


def promises(document: str) -> list[str]:
    """The rows of every table that has a column of tests."""
    tables = re.split(r"\n\n", (ROOT / "docs" / document).read_text("utf-8"))
    rows = [table.splitlines()[2:] for table in tables if table.startswith("| Promise | How | Test |")]
    return [row for table in rows for row in table]


def test_every_threat_is_answered_by_one_promise() -> None:
    made = [row.split("|")[1].strip() for row in promises("security.md")]
    assert {threat: made.count(promise) for threat, promise in THREATS.items()} == dict.fromkeys(THREATS, 1)


def test_every_threat_has_a_test_in_these_two_folders() -> None:
    """Whatever tests of single parts hold beside it."""
    rows = {row.split("|")[1].strip(): row for row in promises("security.md")}
    here = {threat for threat, made in THREATS.items() if re.search(r"`tests/(security|reliability)/", rows[made])}
    assert THREATS.keys() - here == set()


@pytest.mark.parametrize(("document", "least"), [("security.md", 35), ("reliability.md", 12)])
def test_every_promise_names_tests_that_exist(document: str, least: int) -> None:
    lacking, above = [], ""
    for row in promises(document):
        tests = row.rstrip(" |").rpartition("|")[2].strip()
        tests = tests.replace("the same", above)
        above = tests
        found = NAMED.findall(tests)
        # What looks like a test's name and is none that is read above would go unseen.
        missing = [name for name in re.findall(r"`([^`]+)`", tests) if not NAMED.fullmatch(f"`{name}`")]
        missing += [f"{file}::{name}" for file, name in found if not _has(ROOT / file, name)]
        if missing or not found:
            lacking.append((row, missing))
    assert lacking == []
    assert len(promises(document)) >= least


def _has(file: Path, name: str) -> bool:
    if not file.is_file():
        return False
    tree = ast.parse(file.read_text("utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return any(each.startswith("test_") for each in functions) and (not name or name in functions)
