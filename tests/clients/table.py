"""Runs the clients' suites, and writes how many tests of each feature passed into docs/results/clients.md.

python -m tests.clients.table [--path FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.clients import environments
from tests.clients.runs import CLIENTS, FEATURES, Outcome, servers

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "results" / "clients.md"
NOT_ASKED = "–"

_TOP = """\
# Clients: what passes against a running server

Written by `make test-clients`; do not edit. "3 of 4": three tests passed of four that ran; what did not pass is listed
below with its reason, and so is what LangChain's suite skipped. The SDKs' tests are tests/clients/suites/; LangChain's
are its own, with nothing changed but the address of the picture that they download.

Peek is the bundled model. It was not made to call tools, so tools are tried on the fake engine, and on Peek's weights
as a plain SmolVLM2 folder, whose calls the engine holds to their schema."""

Outcomes = Mapping[str, Sequence[Outcome]]
"""By client."""


def render(outcomes: Outcomes, facts: Sequence[tuple[str, str]]) -> str:
    """The page."""
    body = [(client, *(_cell(found, feature) for feature in FEATURES)) for client, found in outcomes.items()]
    parts = [_TOP, _table(("client", *FEATURES), body)]
    for title, state in (("Failed", "failed"), ("Beyond the model", "beyond"), ("Skipped by the suite", "skipped")):
        lines = _reasons(outcomes, state)
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, _table(("", ""), facts)]) + "\n"


def _cell(outcomes: Sequence[Outcome], feature: str) -> str:
    ran = [outcome for outcome in outcomes if outcome.feature == feature and outcome.state != "skipped"]
    passed = sum(outcome.state == "passed" for outcome in ran)
    return f"{passed} of {len(ran)}" if ran else NOT_ASKED


def _reasons(outcomes: Outcomes, state: str) -> list[str]:
    """A line for each client and reason, with the tests that it holds for."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for client, found in outcomes.items():
        for outcome in found:
            if outcome.state == state:
                grouped.setdefault((client, outcome.told.splitlines()[0]), []).append(f"`{outcome.name}`")
    return [f"- {client}: {told.rstrip('.')}: {', '.join(names)}." for (client, told), names in grouped.items()]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def versions() -> str:
    """What the clients' environments are pinned to."""
    pins = (environments.HERE / "requirements.txt").read_text().splitlines()
    package = json.loads((environments.HERE / "package.json").read_text())
    python = [pin.replace("==", " ") for pin in pins if "==" in pin]
    return ", ".join([*python, *(f"{name} {version} (npm)" for name, version in package["dependencies"].items())])


def _facts() -> list[tuple[str, str]]:
    """The code, the clients, and when."""
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return [
        ("commit", done.stdout.strip() or "unknown (no git repository)"),
        ("clients", versions()),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("command", "`python -m tests.clients.table`"),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d")),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=PATH)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    outcomes: dict[str, Sequence[Outcome]] = {}
    with servers() as environment:
        for client, run in CLIENTS.items():
            found = run(environment)
            if found is None:
                print(f"nothing is written: {client} needs node and npm", file=sys.stderr)
                return 1
            outcomes[client] = found
    text = render(outcomes, _facts())
    print(text)
    if any(outcome.state == "failed" for found in outcomes.values() for outcome in found):
        print("nothing is written: a test failed", file=sys.stderr)
        return 1
    arguments.path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
