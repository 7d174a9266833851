"""What safety costs: chat over HTTP on a server with every guard on, beside one with as few as can be.

python -m benchmarks.safety [--starts N] [--rounds N] [--requests N]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.chat import CLIENTS, Plan, Rounds, measure
from benchmarks.client import KEY
from benchmarks.endless import endless_copy
from benchmarks.report import Aim, Cell, Report, Table, median, publish
from benchmarks.server import model_folder, onsight, running

GUARDED, BARE = "guarded", "bare"
MOST_COST = 3.0
ON = (
    *("--api-key", KEY, "--requests-per-min-key", "1000000", "--requests-per-min-address", "1000000"),
    *("--cors-origins", "https://example.org", "--trusted-proxies", "127.0.0.1", "--allowed-hosts", "127.0.0.1"),
    *("--max-queue-caller", "48", "--log-format", "json"),
)
OFF = (
    *("--no-auth", "--log-level", "error", "--max-queue-pixels", "1000000000000", "--request-timeout-s", "1000000"),
    *("--body-timeout-s", "1000000", "--head-timeout-s", "1000000", "--media-cache-mb", "128"),
)


def report(measured: Rounds, plan: Plan, starts: int) -> Report:
    """How much fewer requests a second the guarded server answers, round by round."""
    rows: list[tuple[Cell, ...]] = []
    aims = []
    for clients in CLIENTS:
        rates = {name: [done.requests_per_s for done in measured[name, clients]] for name in (GUARDED, BARE)}
        ratios = [one / other for one, other in zip(rates[GUARDED], rates[BARE], strict=True)]
        rows.append((clients, *(median(rates[name]) for name in (GUARDED, BARE)), median(ratios), *_ends(ratios)))
        aims.append(Aim(f"cost at {clients} client(s)", MOST_COST, (1 - median(ratios)) * 100, "%"))
    columns = ("clients", "guarded, requests/s", "bare, requests/s", "ratio", "lowest round", "highest round")
    notes = (
        f"{starts} starts of both servers, {plan.rounds} rounds each of {plan.requests} requests by number of clients,"
        f" answers of {plan.tokens} tokens; in each round both servers answer the same requests, one after the other,"
        " and the first one changes. Servers are started anew since two that are started alike are not equally fast.",
        f"guarded: `{' '.join(ON)}`; bare: `{' '.join(OFF)}`. What has no switch (checked pictures, limits, turns) is"
        " in both.",
    )
    return Report("safety", "What safety costs", tuple(aims), (Table("Rates", columns, tuple(rows)),), notes)


def _ends(ratios: list[float]) -> tuple[float, float]:
    return min(ratios), max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=9, help="how often both servers are started anew")
    parser.add_argument("--rounds", type=int, default=4, help="after each start")
    parser.add_argument("--requests", type=int, default=64, help="requests a round at 8 clients; a quarter of it at 1")
    arguments = parser.parse_args()
    per_round = {1: max(1, arguments.requests // 4), 8: arguments.requests}
    plan = Plan(arguments.rounds, per_round, 32, "float32", 600.0)
    measured: Rounds = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = endless_copy(model_folder("peek"), Path(temporary) / "model")
        for start in range(arguments.starts):
            print(f"start {start + 1} of {arguments.starts}", flush=True)
            for series, rounds in _after_a_start(folder, plan, Path(temporary)).items():
                measured[series] += rounds
    publish(report(measured, plan, arguments.starts))


def _after_a_start(folder: Path, plan: Plan, logs: Path) -> Rounds:
    """Both servers' rounds."""
    commands = [
        replace(onsight(str(folder), "--dtype", plan.dtype, *options), name=name)
        for name, options in ((GUARDED, ON), (BARE, OFF))
    ]
    with ExitStack() as stack:
        return measure([stack.enter_context(running(command, logs)) for command in commands], plan)


if __name__ == "__main__":
    main()
