"""One bench for all API tests: the whole application over a fake engine, in memory or behind a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from onsight.api.app import ApiSettings, Services, create_app
from onsight.api.metrics import Metrics
from onsight.api.request_log import log_request
from onsight.core.engine import ChatEngine
from onsight.core.frames import FrameRule
from onsight.core.messages import ImageRef
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.media.door import MediaDoor, Opened
from onsight.models.card import Defaults, ModelCard, PixelBudget
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.record import Record
from onsight.tasks.roster import Loaded, Roster

CARD = ModelCard(
    name="fake",
    title="The fake engine",
    family="fake",
    licence="Apache-2.0",
    description="No model at all.",
    capabilities=("chat", "tools"),
    convention="0..1000",
    pixels={"chat": PixelBudget(max_pixels=500_000)},
    defaults=Defaults(temperature=0.25),
)


class NotedDoor(MediaDoor):
    """The real media door, which remembers what it was asked to open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ImageRef] = []

    async def open_pages(self, refs: Sequence[ImageRef], *rest: Any) -> tuple[Opened, ...]:
        self.asked.extend(refs)
        return await super().open_pages(refs, *rest)


@dataclass
class Bench:
    """An application and everything behind it."""

    app: FastAPI
    engine: ChatEngine
    admission: Admission
    metrics: Metrics
    door: NotedDoor
    records: list[Record] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def client(self) -> httpx.AsyncClient:
        """A client of the application in memory, without a port."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://onsight", headers=self.headers
        )

    async def chat(self, **fields: object) -> httpx.Response:
        """One chat request; `messages` asks "hello" unless given."""
        async with self.client() as client:
            return await client.post("/v1/chat/completions", json={"messages": hello(), **fields})

    async def post(self, path: str, body: object) -> httpx.Response:
        """One request with a JSON body."""
        async with self.client() as client:
            return await client.post(path, json=body)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with self.client() as client:
            return await client.get(path, headers=headers)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The application behind a real port of the loopback interface; yields its base URL."""
        config = uvicorn.Config(
            self.app, port=0, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.002)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The test run's own signal handlers stay."""
        yield


@pytest.fixture
def build() -> Iterator[Callable[..., Bench]]:
    """Makes benches; `script` or `engine` says how answers are made, `frames` how videos are
    seen, the other arguments are ApiSettings' fields."""
    doors: list[NotedDoor] = []

    def make(
        script: FakeScript = FakeScript(),  # noqa: B008 (frozen)
        *,
        engine: ChatEngine | None = None,
        places: int = 8,
        card: ModelCard = CARD,
        names: tuple[str, ...] = ("fake", "org/fake-2B"),
        frames: FrameRule | None = None,
        limits: QueueLimits = QueueLimits(),  # noqa: B008 (frozen)
        **settings: object,
    ) -> Bench:
        if engine is None:
            engine = FakeEngine(script)
            # Starting a fake engine waits for nothing, so that no event loop is needed.
            with suppress(StopIteration):
                engine.start().send(None)
        roster = Roster([Loaded(names, replace(card, frames=frames), engine, 1_700_000_000)])
        admission = Admission(places, limits)
        door = NotedDoor()
        metrics = Metrics(roster, admission, door.decoded.cache)
        doors.append(door)
        records: list[Record] = []
        chat = Chat(roster, door, admission, (metrics.record, log_request, records.append))
        embed = Embed(roster, door, admission, (metrics.record, log_request, records.append))
        app = create_app(Services(roster, chat, embed, admission, metrics), ApiSettings(**settings))
        return Bench(app, engine, admission, metrics, door, records)

    yield make
    for door in doors:
        door.close()


@pytest.fixture
def bench(build: Callable[..., Bench]) -> Bench:
    return build()


def hello(text: str = "hello") -> list[dict[str, object]]:
    """The messages of the shortest conversation."""
    return [{"role": "user", "content": text}]


def user(*parts: object) -> list[dict[str, object]]:
    """The messages of a conversation whose one turn has these parts."""
    return [{"role": "user", "content": list(parts)}]


def events(response: httpx.Response) -> list[dict[str, object] | str]:
    """The data of a streamed answer's events."""
    pieces = [piece for piece in response.text.split("\n\n") if piece]
    assert all(piece.startswith("data: ") and "\n" not in piece for piece in pieces)
    return [piece if piece == "[DONE]" else json.loads(piece) for piece in (piece[6:] for piece in pieces)]


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that happens elsewhere; gives up, as an error, after seconds."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def dialled(url: str, sent: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to a served application, over which `sent` has gone; closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(sent)
    await writer.drain()
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()


def request_head(length: int | None, body: bytes = b"") -> bytes:
    """A chat request's head, announcing `length` bytes of body (None: chunked), and the first bytes of the body."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{size}\r\n\r\n"
    return head.encode() + body


def chat_bytes(**fields: object) -> bytes:
    """A whole chat request as it goes over the wire."""
    body = json.dumps({"messages": hello(), **fields}).encode()
    return request_head(len(body), body)
