"""Who calls too often, too slowly, or over too many connections is told so, and the others go on."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection

import httpx
import psutil
import pytest
from starlette.types import Message, Scope

from onsight.api.keys import KeyBook
from onsight.api.rates import Buckets, Rate
from onsight.config import Settings
from onsight.engines.fake_engine import FakeScript
from onsight.serve import listen_on
from tests.api.conftest import Bench, hello
from tests.servers import served, wait_until

Build = Callable[..., Bench]
CHAT: Scope = {
    **{"type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions"},
    **{"query_string": b"", "scheme": "http", "server": ("here", 80), "client": ("192.0.2.1", 1)},
    "headers": [(b"content-type", b"application/json"), (b"host", b"here")],
}


def test_a_bucket_holds_a_minutes_worth_and_fills_steadily() -> None:
    now = [0.0]
    buckets = Buckets(6, lambda: now[0])
    assert [buckets.take("a") for _ in range(6)] == [0.0] * 6
    assert buckets.take("a") == pytest.approx(10)
    assert buckets.take("b") == 0
    now[0] = 9.0
    assert buckets.take("a") == pytest.approx(1)
    now[0] = 10.0
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(10)
    now[0] = 1000.0
    assert [buckets.take("a") == 0 for _ in range(7)] == [True] * 6 + [False]


def test_callers_are_forgotten_in_the_order_in_which_they_fell_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.api.rates._MOST_BUCKETS", 2)
    buckets = Buckets(1, lambda: 0.0)
    assert buckets.take("a") == buckets.take("b") == 0
    assert buckets.take("a") > 0
    assert buckets.take("c") == 0
    assert buckets.take("a") > 0, "b was quiet longest, so b was forgotten"
    assert buckets.take("b") == 0


async def test_a_key_has_a_rate_of_its_own(build: Build) -> None:
    bench = build(keys=KeyBook("sesame"), rate_by_key=Rate("key", 3))
    bench.headers = {"authorization": "Bearer sesame"}
    answers = [await bench.get("/v1/models") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert (await bench.get("/health")).status_code == 200


async def test_keys_cannot_be_guessed_at_speed(build: Build) -> None:
    bench = build(keys=KeyBook("sesame"), a_minute_by_address=3)
    answers = [await bench.get("/v1/models", authorization=f"Bearer {guess}") for guess in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert (await bench.get("/v1/models", authorization="Bearer sesame")).status_code == 429
    assert (await bench.get("/ready")).status_code == 200


async def test_one_client_is_one_address_whichever_it_chooses_of_its_network(build: Build) -> None:
    app = build(keys=KeyBook("sesame"), a_minute_by_address=2).app

    async def guess(address: str) -> int:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://x"
        ) as client:
            return (await client.get("/v1/models", headers={"authorization": "Bearer guess"})).status_code

    assert [await guess(f"2001:db8::{number}") for number in range(1, 5)] == [401, 401, 429, 429]
    assert await guess("2001:db8:0:1::1") == 401


def read_all(connection: socket.socket) -> bytes:
    told = b""
    while piece := connection.recv(4096):
        told += piece
    return told


def test_a_head_that_never_ends_is_given_up_and_others_are_answered() -> None:
    with served("fake", "--engine", "fake", "--head-timeout-s", "1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        address = (host, int(port))
        with (
            socket.create_connection(address, timeout=20) as silent,
            socket.create_connection(address, timeout=20) as trickling,
            httpx.Client(base_url=server.url) as client,
        ):
            stop = threading.Event()

            def trickle() -> None:
                trickling.sendall(b"GET /health HTTP/1.1\r\nx: ")
                while not stop.wait(0.1):
                    try:
                        trickling.sendall(b"y")
                    except OSError:
                        return

            thread = threading.Thread(target=trickle)
            thread.start()
            try:
                assert read_all(silent).startswith(b"HTTP/1.1 408 ")
                assert read_all(trickling).startswith(b"HTTP/1.1 408 ")
            finally:
                stop.set()
                thread.join()
            assert client.get("/health").status_code == 200
            assert 'onsight_refusals_total{code="timeout"} 2.0' in client.get("/metrics").text
        wait_until(lambda: server.log().count("caller=127.0.0.1 method=- path=- status=408 reason=timeout") == 2)


def test_a_connection_too_many_is_told_why_and_a_place_that_is_free_again_is_given() -> None:
    with served("fake", "--engine", "fake", "--max-connections", "2") as server:
        host, port = server.url.removeprefix("http://").split(":")
        address = (host, int(port))
        with socket.create_connection(address, timeout=20) as first:
            first.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
            with socket.create_connection(address, timeout=20) as second:
                second.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                assert second.recv(4096).startswith(b"HTTP/1.1 200")
                with socket.create_connection(address, timeout=20) as third:
                    told = read_all(third)
                assert told.startswith(b"HTTP/1.1 503 ")
                assert b"--max-connections" in told
                assert b"\r\nretry-after: 1\r\n" in told
        assert 'onsight_refusals_total{code="unavailable"} 1.0' in httpx.get(server.url + "/metrics").text


def test_a_connection_that_falls_silent_is_closed_after_a_while() -> None:
    with served("fake", "--engine", "fake", "--keep-alive-s", "1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        connection = HTTPConnection(host, int(port), timeout=20)
        for _ in range(2):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
        silent = connection.sock
        assert silent.recv(1) == b""
        connection.close()


CLIENTS = 1000
MOST_GROWTH = 192 << 20
"""Bytes that a server may grow by under a thousand clients: some 200 KB each, bodies of 100 KB among them."""


@pytest.mark.slow
def test_a_thousand_real_clients_are_answered_or_told_to_come_back_in_bounded_memory() -> None:
    """Each on a connection of its own, all open at once, with 100 KB of body."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    text = json.dumps({"messages": hello(), "max_tokens": 2}).ljust(100_000).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(text)}\r\n"
    sent = f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + text

    async def flood(port: int) -> list[bytes]:
        dialled = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(sent)
            told = await reader.read()
            writer.close()
            return told

        return await asyncio.gather(*(ask(*one) for one in dialled))

    try:
        with served("--engine", "fake", "--max-queue", "16", "--max-connections", "2000") as server:
            process, port = psutil.Process(server.process.pid), int(server.url.rpartition(":")[2])
            assert httpx.post(f"{server.url}/v1/chat/completions", json={"messages": hello()}).status_code == 200
            before, most = process.memory_info().rss, [0]
            watching = threading.Event()

            def watch() -> None:
                while not watching.wait(0.05):
                    most[0] = max(most[0], process.memory_info().rss)

            watcher = threading.Thread(target=watch)
            watcher.start()
            answers = asyncio.run(flood(port))
            watching.set()
            watcher.join()
            assert httpx.get(server.url + "/ready").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    codes = Counter(answer[9:12] for answer in answers)
    assert (codes.total(), set(codes) <= {b"200", b"429", b"503"}) == (CLIENTS, True), codes
    assert codes[b"200"] >= 16
    assert all(b"\r\nretry-after: " in answer for answer in answers if answer[9:12] != b"200")
    assert most[0] - before < MOST_GROWTH


async def test_who_takes_an_answer_too_slowly_gives_their_place_back(build: Build) -> None:
    bench, sent = build(FakeScript(), send_timeout_s=0.2), list[Message]()
    body = json.dumps({"messages": hello("long " * 40), "stream": True}).encode()
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return asked.pop() if asked else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 5:
            assert bench.admission.taken == 1
            await asyncio.Event().wait()

    async with asyncio.timeout(20):
        await bench.app(dict(CHAT), receive, send)
    assert (len(sent), bench.admission.taken, bench.engine.status().running) == (5, 0, 0)
    assert [record.reason for record in bench.records] == ["cancelled"]


async def test_who_takes_nothing_of_an_answer_is_gone_after_a_while() -> None:
    """At the socket: what the listening one is told, those that it accepts keep."""
    listening = listen_on(Settings(port=0, send_timeout_s=1))
    listening.setblocking(False)
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except (ConnectionError, TimeoutError) as error:
            ended.set_result(type(error).__name__)

    server = await asyncio.start_server(pour, sock=listening)
    async with server:
        with socket.create_connection(listening.getsockname()[:2]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            async with asyncio.timeout(60):
                assert await ended in ("TimeoutError", "ConnectionResetError")
