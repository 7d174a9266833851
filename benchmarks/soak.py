"""A server under half again as much as it can do, for as long as one likes: what it answered, lost, and took in memory.

python -m benchmarks.soak [--minutes N] [--share 1.5] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.client import chat_body
from benchmarks.health import collect, probe
from benchmarks.report import ROOT, Aim, Cell, Report, Table, publish, quantile
from benchmarks.screens import data_url, png, screens
from benchmarks.server import RunningServer, model_folder, onsight, running
from onsight.api.keys import new_key, write_keys
from onsight.config import Settings
from tests.media.clips import clip
from tests.media.papers import paper

RESULTS = ROOT / "docs" / "results"
CLIENTS = 12
MEASURE_S = 40.0
SAMPLE_S = 2.0
WARM_UP = 0.2
"""Share of the time after which memory should not grow any more."""
MOST_GROWTH = 3.0
HEALTH_MS = 50.0
PLACES: int = Settings.model_fields["max_queue"].default

KINDS = {"small": 30, "picture": 25, "leaving": 12, "bad": 13, "query": 10, "page": 6, "video": 3, "pdf": 1}
"""How often of each hundred requests each kind comes."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as its client saw it. `status`: 0 where the client left first. `whole`: it was answered once.

    `begun`: its answer had begun, so that it had been admitted. `ended_s`: when it was over, on the client's clock.
    """

    kind: str
    id: str
    status: int
    seconds: float
    ended_s: float
    whole: bool = True
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Bodies:
    """What is sent: many different ones of each kind, encoded beforehand."""

    of: dict[str, list[tuple[str, bytes]]]

    @staticmethod
    def drawn(count: int = 60) -> Bodies:
        shown = [png(picture) for picture, _ in zip(screens(), range(count), strict=False)]
        film = "data:video/mp4;base64," + _base64(clip(frames=40, size=(160, 120)))
        scanned = "data:application/pdf;base64," + _base64(paper())
        chat, embed = "/v1/chat/completions", "/v1/embeddings"

        def ask(*parts: dict[str, object], tokens: int, stream: bool = True) -> bytes:
            return chat_body([{"role": "user", "content": list(parts)}], tokens=tokens, stream=stream)

        pictures = [{"type": "image_url", "image_url": {"url": data_url(file)}} for file in shown]
        of = {
            "small": [(chat, ask(_text(f"Say {n}."), tokens=4, stream=n % 2 == 0)) for n in range(count)],
            "picture": [(chat, ask(one, _text("What does it say?"), tokens=24)) for one in pictures],
            "leaving": [(chat, ask(one, _text("Tell all of it."), tokens=120)) for one in pictures],
            "video": [
                (chat, ask({"type": "video_url", "video_url": {"url": film}}, _text(f"What moves? {n}"), tokens=8))
                for n in range(8)
            ],
            "pdf": [("/v1/ocr", json.dumps({"image": scanned, "max_tokens": 8}).encode())],
            "query": [(embed, json.dumps({"model": "leaf", "input": f"page {n}"}).encode()) for n in range(count)],
            "page": [(embed, json.dumps({"model": "leaf", "input": [one]}).encode()) for one in pictures[:20]],
            "bad": _bad(shown[0]),
        }
        return Bodies(of)


def _bad(picture: bytes) -> list[tuple[str, bytes]]:
    """What must be refused, each in its own way."""
    chat = "/v1/chat/completions"

    def shown(url: str) -> bytes:
        return chat_body([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}], tokens=4)

    return [
        (chat, b"{"),
        (chat, json.dumps({"messages": []}).encode()),
        (chat, json.dumps({"messages": [{"role": "user", "content": "hi"}], "no_such_field": 1}).encode()),
        (chat, chat_body([{"role": "user", "content": "word " * 20_000}], tokens=4)),
        (chat, shown("data:image/png;base64," + _base64(picture[: len(picture) // 2]))),
        (chat, shown("http://127.0.0.1/secret.png")),
        (chat, shown("data:image/png;base64,!!")),
        ("/v1/embeddings", json.dumps({"model": "leaf", "input": []}).encode()),
        ("/v1/embeddings", json.dumps({"model": "nobody", "input": "hi"}).encode()),
        ("/v1/nothing", b"{}"),
    ]


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _base64(data: bytes) -> str:
    return data_url(data).partition(",")[2]


class Crowd:
    """The clients of one run. `small` requests have a key of their own, all others share one."""

    def __init__(self, server: RunningServer, bodies: Bodies, keys: dict[str, str], seed: int) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(base_url=server.url, timeout=900, limits=limits, trust_env=False)
        self._bodies = bodies
        self._keys = keys
        self._chance = random.Random(seed)
        self.sent: list[Sent] = []

    async def one(self) -> None:
        """Send one request of some kind, and note what became of it."""
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        path, body = self._chance.choice(self._bodies.of[kind])
        patience_s = self._chance.choice((0.0, 0.05, 0.5, 2.0)) if kind == "leaving" else None
        name = uuid.uuid4().hex
        headers = {
            "content-type": "application/json",
            "x-request-id": name,
            "authorization": f"Bearer {self._keys['small' if kind == 'small' else 'bulk']}",
        }
        began_s, begun = time.perf_counter(), False
        try:
            async with (
                asyncio.timeout(patience_s),
                self._client.stream("POST", path, content=body, headers=headers) as answer,
            ):
                begun = answer.status_code == 200
                await answer.aread()
            status, whole = answer.status_code, _is_whole(kind, answer)
        except TimeoutError:
            status, whole = 0, True
        ended_s = time.perf_counter()
        self.sent.append(Sent(kind, name, status, ended_s - began_s, ended_s, whole, begun))

    async def in_turn(self, seconds: float) -> float:
        """Let some clients send one request after the other; requests a second that were done."""
        began_s = time.perf_counter()

        async def work() -> None:
            while time.perf_counter() - began_s < seconds:
                await self.one()

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
        return len(self.sent) / (time.perf_counter() - began_s)

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Send so many requests a second, whatever becomes of them, at irregular moments."""
        end_s, asked = time.perf_counter() + seconds, set[asyncio.Task[None]]()
        while time.perf_counter() < end_s:
            asked.add(asyncio.create_task(self.one()))
            await asyncio.sleep(self._chance.expovariate(rate))
        await asyncio.gather(*asked)

    async def close(self) -> None:
        await self._client.aclose()


def _is_whole(kind: str, answer: httpx.Response) -> bool:
    """Whether an answer of 200 is one, and ends once; anything else is told by its status."""
    if answer.status_code != 200:
        return True
    if answer.headers["content-type"].startswith("text/event-stream"):
        ends = len(re.findall(rb'"finish_reason":"(?:stop|length)"', answer.content))
        return ends == 1 and answer.content.count(b"data: [DONE]") == 1
    told = answer.json()
    items = told.get("choices") or told.get("data") or told.get("pages") or [told]
    return len(items) == (3 if kind == "pdf" else 1)


@dataclass(slots=True)
class Memory:
    """(seconds, MiB) of the server's processes."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    async def watch(self, server: RunningServer) -> None:
        began_s = time.perf_counter()
        while True:
            held = await asyncio.to_thread(server.resident_mb)
            self.samples.append((time.perf_counter() - began_s, held))
            await asyncio.sleep(SAMPLE_S)

    def after_warm_up(self) -> tuple[float, float, float]:
        """MiB after the warm-up, at the end, and the most: medians of a tenth of the time each."""
        last_s = self.samples[-1][0]

        def around(begin: float, end: float) -> float:
            return statistics.median(mb for at, mb in self.samples if begin * last_s <= at <= end * last_s)

        return around(WARM_UP, WARM_UP + 0.1), around(0.9, 1.0), max(mb for _, mb in self.samples)


async def soak(
    server: RunningServer, keys: dict[str, str], seconds: float, share: float
) -> tuple[float, list[Sent], Memory, list[float]]:
    """(requests a second that it can do, what was sent at `share` of that, memory, milliseconds of /health)."""
    bodies, memory = Bodies.drawn(), Memory()
    measuring = Crowd(server, bodies, keys, seed=1)
    rate = await measuring.in_turn(MEASURE_S)
    await measuring.close()
    print(f"it does {rate:.2f} requests a second; now {share * rate:.2f} for {seconds / 60:g} minutes", flush=True)
    crowd = Crowd(server, bodies, keys, seed=2)
    watching = asyncio.create_task(memory.watch(server))
    probing = probe(server, seconds)
    await crowd.at_rate(share * rate, seconds)
    assert not watching.done(), watching
    watching.cancel()
    await crowd.close()
    return rate, crowd.sent, memory, await asyncio.to_thread(collect, probing, 60.0)


def lines_of(log: str) -> Counter[str]:
    """How many lines tell the end of each request, by its id."""
    return Counter(re.findall(r"(?:request|refused) id=(\S+)", log))


def is_lost(one: Sent, lines: int) -> bool:
    """Whether it was answered not once, or its end is not told once in the log, as that of all that were admitted."""
    return not one.whole or lines > 1 or ((one.status > 0 or one.begun) and lines != 1)


def slowest_rate(sent: Sequence[Sent], parts: int = 10) -> float:
    """Requests a second that gave a place back, answered or left, in the slowest of the run's `parts`."""
    first_s = min(one.ended_s - one.seconds for one in sent)
    # What ends after the last one was sent has the server to itself.
    part_s = (max(one.ended_s - one.seconds for one in sent) - first_s) / parts
    ends = Counter(int((one.ended_s - first_s) / part_s) for one in sent if one.status in (0, 200))
    return max(1, min(ends[part] for part in range(parts))) / part_s


def report(rate: float, share: float, sent: Sequence[Sent], memory: Memory, health_ms: list[float], log: str) -> Report:
    """What became of the requests, by kind, and what the server took."""
    told = lines_of(log)
    lost = [one for one in sent if is_lost(one, told[one.id])]
    left = [one for one in sent if one.status == 0]
    slowest = slowest_rate(sent)
    small = [one.seconds for one in sent if one.kind == "small" and one.status == 200] or [0.0]
    broken = [one for one in sent if one.status >= 500]
    rows: list[tuple[Cell, ...]] = []
    for kind in KINDS:
        mine = [one for one in sent if one.kind == kind]
        took = [one.seconds for one in mine if one.status == 200] or [0.0]
        counts = Counter("left" if one.status == 0 else str(one.status) for one in mine)
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
        rows.append((kind, len(mine), statuses, *(quantile(took, part) for part in (0.5, 0.95, 0.99))))
    warm, end, most = memory.after_warm_up()
    growth = (end / warm - 1) * 100
    aims = (
        Aim("answers of 5xx", 0, len(broken), ""),
        Aim("requests answered not once, or twice told in the log", 0, len(lost), ""),
        Aim(f"growth of memory after {WARM_UP:.0%} of the time", MOST_GROWTH, growth, "%"),
        Aim("p99 of small requests beside large ones", PLACES / slowest, quantile(small, 0.99), "s"),
        Aim("/health p99", HEALTH_MS, quantile(health_ms, 0.99), "ms"),
    )
    columns = ("kind", "sent", "answers", "p50 of 200, s", "p95, s", "p99, s")
    held: tuple[Cell, ...] = (warm, end, most)
    asked: tuple[Cell, ...] = tuple(quantile(health_ms, part) for part in (0.5, 0.95, 0.99, 1.0))
    tables = (
        Table("Requests", columns, tuple(rows)),
        Table("Memory of all processes, MiB", ("after warm-up", "at the end", "most"), (held,)),
        Table("/health, ms", ("p50", "p95", "p99", "slowest"), (asked,)),
    )
    notes = (
        f"Capacity was measured first: {CLIENTS} clients, each one request after the other, {MEASURE_S:.0f} s:"
        f" {rate:.2f} requests a second. Then {share * rate:.2f} a second ({share:.0%}) were sent at irregular moments,"
        f" {len(sent)} in all, whether or not earlier ones were answered; 429 is what the rest should be told.",
        "Peek's weights answer under SmolVLM2's card, so that videos are seen; Leaf makes the vectors. `small` requests"
        " come with a key of their own, all others with another; what becomes free goes to the key that holds fewer.",
        "Each request has an id of its own: an answer of 200 must be whole and end once, and the server's log must have"
        " one line for it, also where its client left in the middle of it; who left earlier may not have been heard. Of"
        f" {len(left)} that left, {sum(one.begun for one in left)} had begun to read and"
        f" {sum(told[one.id] == 1 for one in left)} have their line.",
        f"The bound on small requests is {PLACES} places in the queue times {1 / slowest:.2f} s, what each took in the"
        " slowest tenth of the run: an accepted request has fewer than all places before it, and callers share, so"
        " that none should wait for longer than the whole queue takes, however large the others' requests are.",
        "`/health` was asked by another process, on a new connection each time, every 10 ms.",
        "The server and all clients share the machine's cores, and other work ran beside them where the load average"
        " below is above their number: latencies are those of that machine.",
    )
    details: dict[str, object] = {"memory_mb": memory.samples, "rate": rate}
    return Report("soak", "A server under more than it can do", aims, tables, notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the load lasts")
    parser.add_argument("--share", type=float, default=1.5, help="of what it can do")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the report goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(model_folder("peek"), folder / "chat")
        made = {name: new_key(name, ("chat", "embed", "admin")) for name in ("small", "bulk")}
        write_keys(folder / "keys.json", [key for _, key in made.values()])
        keys = {name: text for name, (text, _) in made.items()}
        options = ("leaf", "--keys-file", str(folder / "keys.json"), "--no-ui")
        with running(onsight(str(folder / "chat"), *options), folder) as server:
            rate, sent, memory, health_ms = asyncio.run(soak(server, keys, arguments.minutes * 60, arguments.share))
            metrics = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {keys['bulk']}"}).text
            assert "onsight_queue_places_taken 0.0" in metrics, "a place was not given back"
        (log,) = folder.glob("*.log")
        publish(report(rate, arguments.share, sent, memory, health_ms, log.read_text("utf-8")), arguments.out)


if __name__ == "__main__":
    main()
