"""Durations are measured on clocks that do not jump: the wall clock is read only to say when something was."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "onsight"

DATES = {
    "api/health.py",
    "api/keys.py",
    "api/openai/answers.py",
    "api/openai/responses_answers.py",
    "api/traces.py",
    "api/vectors/answers.py",
    "cli/keys.py",
    "engine_choice.py",
    "engines/torch_engine/chat_template.py",
    "torch_models.py",
}
"""Files that tell a date: in an answer, of a key, of a trace, to a chat template."""

WALL_CLOCK = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def test_the_wall_clock_is_read_for_dates_alone() -> None:
    reading = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in WALL_CLOCK
    }
    assert reading == DATES
