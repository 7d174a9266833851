"""Run the README's blocks against a real server; `python -m tests.readme` writes what they printed into the README.

A `console` block holds commands (`$ `) and what they print; a printed line `...` stands for any lines, `…` in a line
for any text. A `python` block runs as it stands. The address 127.0.0.1:8000 is replaced by that of the tested server.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.servers import served

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:8000"

# These two are run for real by .ci/run, in a fresh checkout; inside the tests only what they would do is checked.
MAKE = {"make serve": "onsight serve", "make test": "pytest"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where the text begins and ends in the README."""

    language: str
    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Command:
    """One command of a console block and the lines that it should print."""

    line: str
    printed: str


def blocks() -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], match.start(2), match.end(2)) for match in found]


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line that ends with a backslash goes on."""
    result = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        count = 1
        while lines[count - 1].endswith("\\"):
            count += 1
        result.append(Command("\n".join(lines[:count]), "\n".join(lines[count:]).strip("\n")))
    return result


def run(source: str, url: str) -> str:
    """What a shell prints for `source`, with the server's address put in and the venv's commands on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source.replace(ADDRESS, url)],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{source}\n{done.stdout}{done.stderr}"
    return done.stdout.strip("\n")


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what `expected` says, where `...` and `…` stand for anything."""
    pattern = re.escape(expected).replace(r"\.\.\.", "…").replace("…", ".*?")
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def run_python(source: str, url: str) -> str:
    quoted = source.replace("'", "'\\''")
    return run(f"python -c '{quoted}'", url)


def write() -> None:
    """Replace what the README says is printed by what was printed now (blocks without `...`)."""
    text = README.read_text("utf-8")
    with served() as server:
        for block in reversed(blocks()):
            if block.language != "console":
                continue
            fresh = ""
            for command in commands(block):
                printed = command.printed
                if command.line not in MAKE and "..." not in printed and "…" not in printed:
                    printed = run(command.line, server.url).replace(server.url, ADDRESS)
                fresh += f"$ {command.line}\n" + (f"{printed}\n" if printed else "")
            text = text[: block.start] + fresh + text[block.stop :]
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
