"""What ends the server, or what it stands on: signals, killed children, a disk that is full or gone, floods."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.faults import faults, until
from tests.engines.upstream_engine.scripted import endless, scripted
from tests.media.papers import page, pdf
from tests.media.pictures import data_url, plain
from tests.servers import Served, get, served
from tests.stand_in_hub import put_in_cache
from tests.tiny_models import write_smolvlm

CHAT = "/v1/chat/completions"


def ask(server: Served, text: str = "hi", **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **fields}
    return httpx.post(server.url + CHAT, json=body, timeout=60)


async def test_a_second_sigterm_cuts_and_the_client_hears_of_it() -> None:
    async with scripted() as upstream:
        with ExitStack() as stack:
            server = await asyncio.to_thread(stack.enter_context, served("--upstream", upstream.url))
            upstream.plays = [endless]
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
            async with (
                httpx.AsyncClient(base_url=server.url, timeout=30) as client,
                client.stream("POST", CHAT, json=body) as answer,
            ):
                lines = (line async for line in answer.aiter_lines() if line)
                await anext(lines)
                server.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    while (await client.get("/ready")).status_code != 503:
                        await asyncio.sleep(0.02)
                # The first one cuts nothing: more than was under way is still coming.
                going_on = [await anext(lines) for _ in range(20)]
                assert all('"content":"la "' in line for line in going_on)
                assert server.process.poll() is None
                server.process.send_signal(signal.SIGTERM)
                rest = [line async for line in lines]
            assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "unavailable"
            assert await asyncio.to_thread(server.process.wait, 30) == 0
            async with asyncio.timeout(20):
                while upstream.left < 1:  # it notices when it sends its next piece
                    await asyncio.sleep(0.01)


@pytest.mark.model
def test_what_the_server_stands_on_may_go_once_it_is_ready(tmp_path: Path) -> None:
    """The cache that holds its model, its temporary folder, and room on any disk."""
    here = put_in_cache(tmp_path / "cache", "org/tiny", write_smolvlm(tmp_path / "model"))
    (tmp_path / "tmp").mkdir()
    with served("org/tiny", TMPDIR=str(tmp_path / "tmp"), **here) as server:
        for gone in ("cache", "tmp"):
            shutil.rmtree(tmp_path / gone)
        psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (0, 0))
        shown = {"type": "image_url", "image_url": {"url": data_url(plain())}}
        for _ in range(2):
            answer = ask(server, messages=[{"role": "user", "content": [shown, {"type": "text", "text": "hi"}]}])
            assert answer.status_code == 200, answer.text
        assert get(server, "/ready").status_code == 200
        assert server.stop() == 0


@pytest.mark.model
def test_a_child_that_is_killed_costs_the_request_that_it_worked_for(tmp_path: Path) -> None:
    lines = b" ".join(b"%d %d m %d %d l S" % (n % 700, n % 900, n * 7 % 700, n * 13 % 900) for n in range(150_000))
    paper = data_url(pdf([page(lines, 700, 900)]), "application/pdf")
    with served("peek") as server, ThreadPoolExecutor(1) as pool:
        body = {"image": paper, "max_tokens": 4}
        reading = pool.submit(httpx.post, f"{server.url}/v1/ocr", json=body, timeout=60)
        parent = psutil.Process(server.process.pid)
        until(lambda: any(child.cpu_times().user > 0.3 for child in parent.children(recursive=True)))
        for child in parent.children(recursive=True):
            child.kill()
        assert reading.result().status_code == 503
        assert ask(server).status_code == 200


def test_a_server_takes_as_many_open_files_as_it_is_given() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with served("--engine", "fake") as server:
            assert psutil.Process(server.process.pid).rlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1024) > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_slow_senders_and_silent_connections_keep_nobody_else_from_an_answer() -> None:
    with (
        served("--engine", "fake", "--body-timeout-s", "1", "--max-connections", "150") as server,
        ExitStack() as stack,
    ):
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(50)]
        for connection in slow:
            connection.sendall(head.encode() + b"{")
        for _ in range(60):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        assert [ask(server).status_code for _ in range(5)] == [200] * 5
        assert [connection.recv(12) for connection in slow] == [b"HTTP/1.1 408"] * 50
        assert [ask(server).status_code for _ in range(5)] == [200] * 5


@pytest.mark.slow
def test_every_fault_of_the_table_costs_what_it_may_and_no_more(tmp_path: Path) -> None:
    """`make faults`, as a test; whatever is broken, the server answers again or ends."""
    rows = [fault() for fault in faults(tmp_path)]
    assert [row for row in rows if not row.kept] == []
