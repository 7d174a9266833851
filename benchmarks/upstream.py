"""What Onsight in front of another server costs: requests a second to a scripted one, directly and through Onsight.

python -m benchmarks.upstream [--rounds N] [--requests N]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.client import ask_all, chat_body
from benchmarks.report import RESULTS, Cell, Report, Table, median, publish
from benchmarks.server import Command, RunningServer, running

CLIENTS = (8, 64)
TOKENS = 32
PACES_MS = (0.0, 20.0)
"""Before each token: none shows what Onsight can pass on at most, the other is that of a large model on a GPU."""

Rates = dict[tuple[float, int], list[tuple[float, float]]]
"""By pace and clients: (directly, through Onsight) in requests/s, a pair a round."""


def scripted(pace_ms: float) -> Command:
    arguments = ("-m", "benchmarks.peers.scripted_openai", "{port}", str(TOKENS), str(pace_ms))
    return Command(f"scripted {pace_ms:g} ms", arguments, "/v1/models", model="scripted")


def through(server: RunningServer) -> Command:
    """Onsight before it, with its own defaults."""
    arguments = ("-m", "onsight", "serve", "--upstream", server.url, "--no-ui", "--port", "{port}")
    return Command(f"Onsight before {server.name}", arguments, "/ready", model="upstream")


def rate(server: RunningServer, clients: int, requests: int) -> float:
    """Requests/s when so many clients ask one after the other."""
    body = chat_body([{"role": "user", "content": "Say some words."}], tokens=TOKENS, model=server.model)
    answers, seconds = asyncio.run(ask_all(server.url, [body] * requests, clients))
    assert all(answer.tokens == TOKENS for answer in answers)
    return len(answers) / seconds


def measure(pairs: dict[float, tuple[RunningServer, RunningServer]], rounds: int, requests: int) -> Rates:
    """The pairs of each round are taken side by side in time; the first round does not count."""
    rates: Rates = {(pace, clients): [] for pace in pairs for clients in CLIENTS}
    everybody = [server for pair in pairs.values() for server in pair]
    for number in range(-1, rounds):
        for (pace, clients), told in rates.items():
            direct, ours = pairs[pace]
            with direct.alone([server for server in everybody if server not in (direct, ours)]):
                took = {one.name: rate(one, clients, requests) for one in (direct, ours)[:: 1 if number % 2 else -1]}
            if number >= 0:
                told.append((took[direct.name], took[ours.name]))
            print(f"{pace:g} ms, {clients} clients: {took}", flush=True)
    return rates


def report(rates: Rates, requests: int) -> Report:
    """One row for each pace and number of clients."""
    rows: list[tuple[Cell, ...]] = []
    for (pace, clients), told in rates.items():
        directly, ours = ([pair[side] for pair in told] for side in (0, 1))
        rows.append(
            (f"{pace:g} ms", clients, median(directly), median(ours), median([one[1] / one[0] for one in told]))
        )
    columns = ("pause before a token", "clients", "directly, requests/s", "through Onsight, requests/s", "ratio")
    rounds = len(next(iter(rates.values())))
    notes = (
        f"A server without a model streams {TOKENS} tokens an answer; {requests} requests of one short text at each"
        f" number of clients, {rounds} rounds after one that does not count, ratios between neighbours in time.",
        "Without a pause the scripted server does almost nothing, so that the ratio there is the price of a request and"
        " not a loss that a model would show; its requests/s are the most that one Onsight process passes on here.",
        "That server, Onsight and the clients share the machine's cores. Onsight has its own defaults.",
    )
    details: dict[str, object] = {f"{pace:g} ms, {clients}": told for (pace, clients), told in rates.items()}
    title = "Onsight in front of another server"
    return Report("upstream", title, (), (Table("Figures", columns, tuple(rows)),), notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        logs = Path(temporary)
        pairs = {}
        for pace in PACES_MS:
            direct = stack.enter_context(running(scripted(pace), logs))
            pairs[pace] = (direct, stack.enter_context(running(through(direct), logs)))
        rates = measure(pairs, arguments.rounds, arguments.requests)
    publish(report(rates, arguments.requests), arguments.out)


if __name__ == "__main__":
    main()
