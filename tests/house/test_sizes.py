"""The sizes that keep the house honest; the table is printed with `pytest -s` and on failure."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "onsight"

MAX_FILE_LINES = 400
PARTS = {
    "root": 1_050,
    "core": 700,
    "media": 2_000,
    "models": 1_100,
    "index": 300,
    "engines": 500,
    "engines/torch_engine": 5_500,
    "engines/upstream_engine": 1_300,
    "tasks": 1_500,
    "api": 4_500,
    "cli": 1_600,
    "hosts": 900,
    "ui": 1_500,
}
"""Lines of code that each part may have: docs/decisions/0024-every-part-has-its-bound.md."""
MAX_FUNCTION_LINES = 60
MAX_P95_FUNCTION_LINES = 40
MAX_ARGUMENTS = 6


@dataclass(frozen=True)
class Measured:
    path: str
    code_lines: int
    functions: tuple[tuple[str, int, int], ...]  # name, lines, arguments


def _code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: no blank lines, comments or docstrings."""
    tree = ast.parse(source)
    lines: set[int] = set()
    passed_over = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in passed_over:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def _measure(path: Path) -> Measured:
    source = path.read_text("utf-8")
    code = _code_lines(source)
    functions = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = sum(1 for line in code if node.lineno <= line <= (node.end_lineno or node.lineno))
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            functions.append((node.name, lines, sum(argument.arg not in ("self", "cls") for argument in every)))
    return Measured(str(path.relative_to(SOURCE)), len(code), tuple(functions))


def _part(path: str) -> str:
    """The part of the package that a file belongs to: the longest name in `PARTS` that its folder begins with."""
    folders = path.split("/")[:-1]
    name = "/".join(folders[:2])
    return name if name in PARTS else (folders[0] if folders else "root")


def test_files_functions_and_parts_stay_small() -> None:
    measured = [_measure(path) for path in sorted(SOURCE.rglob("*.py"))]
    functions = [(item.path, *function) for item in measured for function in item.functions]
    lengths = sorted(lines for _, _, lines, _ in functions)
    p95 = statistics.quantiles(lengths, n=20)[-1]
    total = sum(item.code_lines for item in measured)
    parts = dict.fromkeys(PARTS, 0)
    for item in measured:
        parts[_part(item.path)] += item.code_lines  # a new part needs its bound first
    for item in sorted(measured, key=lambda item: -item.code_lines):
        print(f"{item.code_lines:5} {item.path}")
    for part, lines in parts.items():
        print(f"{lines:5} of {PARTS[part]:5} {part}")
    print(f"{total:5} the package; {len(functions)} functions, p95 {p95:.0f} lines, longest {lengths[-1]}")

    assert [(item.path, item.code_lines) for item in measured if item.code_lines > MAX_FILE_LINES] == []
    assert [(path, name, lines) for path, name, lines, _ in functions if lines > MAX_FUNCTION_LINES] == []
    assert [(path, name, count) for path, name, _, count in functions if count > MAX_ARGUMENTS] == []
    assert p95 <= MAX_P95_FUNCTION_LINES
    assert {part: lines for part, lines in parts.items() if lines > PARTS[part]} == {}
