"""Chat over HTTP: Onsight beside `transformers serve` and a plain `model.generate` app, on the same weights.

python -m benchmarks.chat [--model FOLDER] [--rounds N] [--requests N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Answer, ask_all, question
from benchmarks.endless import endless_copy
from benchmarks.report import Aim, Cell, Report, Table, median, publish, quantile
from benchmarks.screens import png, screens
from benchmarks.server import Command, RunningServer, generate_app, model_folder, onsight, running, transformers_serve

QUESTION = "Read the screen."
CLIENTS = (1, 8)
STREAMING = {"generate app": False}
SPEED_UP_WANTED = 5.0


@dataclass(frozen=True, slots=True)
class Round:
    """One server's answers to one round of requests; `seconds` from the first sent to the last answered."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def requests_per_s(self) -> float:
        return len(self.answers) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds


Rounds = dict[tuple[str, int], list[Round]]
"""By server and number of clients, in the order in which they were run."""


class WrongLength(RuntimeError):
    """A server did not write as many tokens as the others, so that nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`requests`: by number of clients, how many a round has. `tokens`: of each answer. `dtype`: of every server.
    No round begins once `budget_s` seconds have gone by."""

    rounds: int
    requests: dict[int, int]
    tokens: int
    dtype: str
    budget_s: float


def measure(servers: Sequence[RunningServer], plan: Plan) -> Rounds:
    """In each round every server answers the same requests, one server after the other; the first one changes."""
    pictures = (png(screen) for screen in screens())
    measured: Rounds = {(server.name, clients): [] for server in servers for clients in CLIENTS}
    for clients in CLIENTS:  # the first requests pay for lazy set-up everywhere, and are not counted
        _round(servers, clients, list(itertools.islice(pictures, clients)), plan.tokens)
    began_s = time.perf_counter()
    for number in range(plan.rounds):
        if time.perf_counter() - began_s > plan.budget_s:
            print(f"the time is over after {number} of {plan.rounds} rounds", flush=True)
            break
        first = number % len(servers)
        order = [*servers[first:], *servers[:first]]
        for clients in CLIENTS:
            asked = list(itertools.islice(pictures, plan.requests[clients]))
            for server, done in zip(order, _round(order, clients, asked, plan.tokens), strict=True):
                measured[server.name, clients].append(done)
                rate = f"{done.requests_per_s:.2f} requests/s"
                print(f"round {number + 1}, {clients} client(s), {server.name}: {rate}", flush=True)
    return measured


def _round(servers: Sequence[RunningServer], clients: int, pictures: Sequence[bytes], tokens: int) -> list[Round]:
    """Each server's answers to one question about each picture. Raises WrongLength."""
    done = []
    for server in servers:
        stream = STREAMING.get(server.name, True)
        bodies = [question(picture, QUESTION, tokens=tokens, stream=stream, model=server.model) for picture in pictures]
        with server.alone(servers):
            answers, seconds = asyncio.run(ask_all(server.url, bodies, clients))
        lengths = {answer.tokens for answer in answers}
        if lengths != {tokens}:
            raise WrongLength(f"{server.name} wrote answers of {sorted(lengths)} tokens; asked for were {tokens}")
        done.append(Round(tuple(answers), seconds))
    return done


def report(measured: Rounds, names: Sequence[str], plan: Plan) -> Report:
    """The tables: every server at every load, and how far the first one is ahead of each of the others."""
    ours, peers = names[0], names[1:]
    figures: tuple[tuple[Cell, ...], ...] = tuple(
        (clients, name, *_figures(measured[name, clients])) for clients in CLIENTS for name in names
    )
    ratios: tuple[tuple[Cell, ...], ...] = tuple(
        (clients, f"{ours} / {peer}", *_ratios(measured[ours, clients], measured[peer, clients]))
        for clients in CLIENTS
        for peer in peers
    )
    most = max(CLIENTS)
    aims = [
        Aim(
            f"requests/s at {most} clients, against {peer}",
            SPEED_UP_WANTED,
            _speed_up(measured[ours, most], measured[peer, most]),
            "x",
            at_least=True,
        )
        for peer in peers
    ] + [
        Aim(
            f"TTFT p50 at 1 client, no worse than {peer}",
            _first_ms(measured[peer, 1], 0.5),
            _first_ms(measured[ours, 1], 0.5),
            "ms",
        )
        for peer in peers
    ]
    columns = ("clients", "server", "requests/s", "tokens/s", "TTFT p50, ms", "TTFT p95, ms", "whole answer p50, ms")
    return Report(
        "chat",
        "Chat: one screen, one question, the same weights behind three servers",
        tuple(aims),
        (
            Table("Figures", columns, figures),
            Table(
                "Ratios",
                ("clients", "servers", "requests/s", "lowest round", "highest round", "TTFT p50"),
                ratios,
            ),
        ),
        _notes(measured, names, plan),
        {f"{name}, {clients} clients": _raw(rounds) for (name, clients), rounds in measured.items()},
    )


def _figures(rounds: Sequence[Round]) -> tuple[float, ...]:
    totals_ms = [answer.total_s * 1000 for done in rounds for answer in done.answers]
    return (
        median([done.requests_per_s for done in rounds]),
        median([done.tokens_per_s for done in rounds]),
        _first_ms(rounds, 0.5),
        _first_ms(rounds, 0.95),
        median(totals_ms),
    )


def _first_ms(rounds: Sequence[Round], share: float) -> float:
    """A quantile of the time to first token over all rounds, in milliseconds."""
    return quantile([answer.first_s * 1000 for done in rounds for answer in done.answers], share)


def _speed_up(ours: Sequence[Round], theirs: Sequence[Round]) -> float:
    """Median over the rounds of the ratio of requests/s, each round against the same round."""
    return median([one.requests_per_s / other.requests_per_s for one, other in zip(ours, theirs, strict=True)])


def _ratios(ours: Sequence[Round], theirs: Sequence[Round]) -> tuple[str, ...]:
    by_round = [one.requests_per_s / other.requests_per_s for one, other in zip(ours, theirs, strict=True)]
    first = _first_ms(ours, 0.5) / _first_ms(theirs, 0.5)
    return tuple(f"{ratio:.2f}x" for ratio in (median(by_round), min(by_round), max(by_round), first))


def _notes(measured: Rounds, names: Sequence[str], plan: Plan) -> tuple[str, ...]:
    requests = ", ".join(f"{count} requests at {clients} client(s)" for clients, count in plan.requests.items())
    same = _agreement(measured, names)
    return (
        f"{len(measured[names[0], 1])} rounds; in each every server gets the same {requests}, about screens of 256x256"
        " px that no server has seen before. The order of the servers changes; while one is measured the others are"
        " loaded but stopped (SIGSTOP).",
        f"Every answer has exactly {plan.tokens} tokens (checked): the model folder is a copy with the same weights in"
        f" which no token ends an answer. Temperature 0, dtype {plan.dtype}.",
        f"Answers that are the same, letter for letter, as the {names[-1]}'s: {same}.",
        "requests/s and tokens/s are medians over rounds; times are quantiles over all requests. A ratio of requests/s"
        " is the median over rounds of the ratio within a round.",
        "TTFT is the time from sending a request to the first text. The generate app sends nothing before the whole"
        " answer.",
    )


def _agreement(measured: Rounds, names: Sequence[str]) -> str:
    """How often servers that run the same weights say the same."""
    parts = []
    for name in names[:-1]:
        pairs = [
            (one.text, other.text)
            for clients in CLIENTS
            for mine, theirs in zip(measured[name, clients], measured[names[-1], clients], strict=True)
            for one, other in zip(mine.answers, theirs.answers, strict=True)
        ]
        parts.append(f"{name} {sum(one == other for one, other in pairs)} of {len(pairs)}")
    return ", ".join(parts)


def _raw(rounds: Sequence[Round]) -> list[dict[str, object]]:
    return [
        {
            "seconds": done.seconds,
            "first_s": [answer.first_s for answer in done.answers],
            "total_s": [answer.total_s for answer in done.answers],
        }
        for done in rounds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64, help="requests a round at 8 clients; a quarter of it at 1")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--dtype", default="float32", help="number type of every server; 'auto' is each one's default")
    parser.add_argument("--minutes", type=float, default=6.0, help="no round begins after so many minutes of rounds")
    arguments = parser.parse_args()
    per_round = {1: max(1, arguments.requests // 4), 8: arguments.requests}
    plan = Plan(arguments.rounds, per_round, arguments.tokens, arguments.dtype, arguments.minutes * 60)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = endless_copy(model_folder(arguments.model), Path(temporary) / "model")
        dtype = ("--dtype", plan.dtype)
        commands: list[Command] = [
            onsight(str(folder), *dtype),
            transformers_serve(folder, *dtype),
            generate_app(folder, *dtype),
        ]
        servers = [stack.enter_context(running(command, Path(temporary))) for command in commands]
        measured = measure(servers, plan)
    publish(report(measured, [command.name for command in commands], plan))


if __name__ == "__main__":
    main()
