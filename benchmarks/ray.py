"""What Ray's gateway costs, and what keeping a picture's requests in one replica brings.

python -m benchmarks.ray [--rounds N]      (needs the extra `ray`)
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx

from benchmarks.client import Answer, ask, chat_body, connect, question
from benchmarks.report import ROOT, Aim, Cell, Report, Table, median, publish
from benchmarks.screens import png, screens
from benchmarks.server import free_port, onsight, running

CLIENTS = 4
REQUESTS = 40
TOKENS = 32
PICTURES = 24
TIMES = 4
REPLICAS = 2
THREADS = len(os.sched_getaffinity(0))
"""Of the model, with Ray and without: left to itself, Ray gives a replica as many as its CPUs."""
_HITS = re.compile(r"^onsight_image_cache_(hits|misses)_total\S* (\S+)$", re.MULTILINE)


@contextmanager
def cluster() -> Iterator[str]:
    """Ray on this machine, with the door in its proxy; the proxy's address."""
    os.environ |= {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "onsight.hosts.ray.door",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path[1:]]),
    }
    import ray
    from ray import serve

    port = free_port()
    ray.init(num_cpus=REPLICAS + 1, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(replicas: int, **options: object) -> None:
    """Serve a model in so many replicas, none of which has seen anything."""
    from ray import serve

    from onsight.hosts.ray import build

    scaling = {"min_replicas": replicas, "max_replicas": replicas, "cpus": 0.5}
    serve.delete("bench", _blocking=True)
    serve.run(build({"no_auth": True, "scaling": scaling, **options}), name="bench")


async def work_through(url: str, bodies: Sequence[bytes], clients: int, *, scatter: bool = False) -> list[Answer]:
    """The answers, by clients with one request each at a time. `scatter`: each request may go to any replica."""
    waiting, answers = list(reversed(bodies)), []
    async with connect(url, clients) as client:
        if scatter:
            client.event_hooks["request"].append(_scatter)

        async def work() -> None:
            while waiting:
                answers.append(await ask(client, waiting.pop()))

        await asyncio.gather(*(work() for _ in range(clients)))
    return answers


async def _scatter(request: httpx.Request) -> None:
    request.headers["x-session-id"] = uuid.uuid4().hex


def gateway(url: str, rounds: int) -> tuple[tuple[Cell, ...], ...]:
    """Rows of the same engine with and without Ray: milliseconds of the first text and of the whole answer."""
    bodies = [
        chat_body([{"role": "user", "content": f"Question {n}: what is it?"}], tokens=TOKENS) for n in range(REQUESTS)
    ]
    rows: list[tuple[Cell, ...]] = []
    for engine in ("fake", "torch"):
        deploy(1, engine=engine, threads=THREADS)
        alone = onsight("peek", "--engine", engine, "--threads", str(THREADS))
        with tempfile.TemporaryDirectory() as logs, running(alone, Path(logs)) as server:
            for clients in (1, CLIENTS):
                took: dict[str, list[tuple[float, float]]] = {server.url: [], url: []}
                for address in [server.url, url] * (rounds + 1):
                    answers = asyncio.run(work_through(address, bodies, clients))
                    middle = [median([one.first_s for one in answers]), median([one.total_s for one in answers])]
                    took[address].append((middle[0], middle[1]))
                # The first round warms both up.
                without, with_ray = (
                    [median([one[part] for one in took[address][1:]]) * 1000 for part in (0, 1)] for address in took
                )
                ratio = with_ray[1] / without[1]
                rows.append((engine, clients, without[0], with_ray[0], without[1], with_ray[1], ratio))
    return tuple(rows)


def routing(url: str) -> list[tuple[Cell, ...]]:
    """Rows of routing by picture and by chance: share of pictures met again, and milliseconds to the first text."""
    bodies = [question(png(one), "Read the screen.", tokens=4) for one in islice(screens(), PICTURES)] * TIMES
    random.Random(0).shuffle(bodies)
    rows: list[tuple[Cell, ...]] = []
    for name, scatter in (("by picture", False), ("by chance", True)):
        deploy(REPLICAS, model="peek")
        answers = asyncio.run(work_through(url, bodies, CLIENTS, scatter=scatter))
        hits, misses = _looked_up(url)
        first_ms = [one.first_s * 1000 for one in answers]
        rows.append((name, 100 * hits / (hits + misses), median(first_ms), sum(first_ms) / len(first_ms)))
    return rows


def _looked_up(url: str) -> tuple[float, float]:
    """Pictures that were and were not in the replicas' caches, all of them asked."""
    seen: dict[str, dict[str, str]] = {}
    while len(seen) < REPLICAS:
        answer = httpx.get(f"{url}/metrics", headers={"x-session-id": uuid.uuid4().hex})
        seen[answer.headers["x-onsight-replica"]] = dict(_HITS.findall(answer.text))
    return (
        sum(float(one["hits"]) for one in seen.values()),
        sum(float(one["misses"]) for one in seen.values()),
    )


def report(costs: tuple[tuple[Cell, ...], ...], routed: Sequence[tuple[Cell, ...]]) -> Report:
    by_picture, by_chance = (float(row[1]) for row in routed)
    return Report(
        "ray",
        "What Ray costs, and what its routing brings",
        (Aim("pictures met again, by picture against by chance", 1.0, by_picture / by_chance, "x", at_least=True),),
        (
            Table(
                f"The same engine without and with Ray: {REQUESTS} streamed chats of at most {TOKENS} tokens",
                ("engine", "clients", "first, ms", "first with Ray, ms", "whole, ms", "whole with Ray, ms", "ratio"),
                costs,
            ),
            Table(
                f"{PICTURES} pictures, each asked about {TIMES} times in random order, {REPLICAS} replicas of Peek",
                ("routing", "met again, %", "first text, ms (median)", "first text, ms (mean)"),
                tuple(routed),
            ),
        ),
        (
            "Without Ray: one `onsight serve`; with Ray: one replica behind the proxy and its door. Rounds alternate;"
            " what stands in the table is the median of their medians, the first round left out.",
            f"At best a picture is met again {100 * (TIMES - 1) / TIMES:.0f} % of the time. By chance: each request has"
            " an x-session-id of its own.",
            f"The model has {THREADS} threads with Ray and without. Proxy, replicas and clients share the processor.",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with cluster() as url:
        publish(report(gateway(url, given.rounds), routing(url)))


if __name__ == "__main__":
    main()
