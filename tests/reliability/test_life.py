"""What ends the server, or what it stands on: signals, killed children, a disk that is full or gone, floods."""

from __future__ import annotations

import resource
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.faults import until
from tests.media.papers import page, pdf
from tests.media.pictures import data_url, plain
from tests.servers import Served, get, served
from tests.tiny_models import write_smolvlm

CHAT = "/v1/chat/completions"


def ask(server: Served, text: str = "hi", **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **fields}
    return httpx.post(server.url + CHAT, json=body, timeout=60)


def test_a_second_sigterm_cuts_and_the_client_hears_of_it() -> None:
    with served("--engine", "fake") as server:
        body = {"messages": [{"role": "user", "content": "word " * 4000}], "stream": True, "max_tokens": 100_000}
        pieces: list[str] = []
        begun = threading.Event()

        def read() -> None:
            try:
                with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as answer:
                    for line in answer.iter_lines():
                        pieces.append(line)
                        begun.set()
                        begun.wait()
            except httpx.HTTPError as error:
                pieces.append(type(error).__name__)
            begun.set()

        reading = threading.Thread(target=read)
        reading.start()
        assert begun.wait(30)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) is not None
        reading.join(30)
        assert not reading.is_alive(), "a client was left without an end"


@pytest.mark.model
def test_what_the_server_stands_on_may_go_once_it_is_ready(tmp_path: Path) -> None:
    """Its model's folder, its cache, its temporary folder, and room on any disk."""
    folder = write_smolvlm(tmp_path / "model")
    here = {"TMPDIR": str(tmp_path / "tmp"), "HF_HOME": str(tmp_path / "cache")}
    (tmp_path / "tmp").mkdir()
    with served(str(folder), **here) as server:
        for gone in ("model", "tmp"):
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
def test_every_fault_of_the_table_ends_every_request_and_leaves_the_server_ready(tmp_path: Path) -> None:
    """`make faults`, as a test: its own assertions are that each server answers again."""
    from benchmarks import faults

    for fault in (faults.stalled, faults.cut_upstream, faults.many_connections, faults.slow_senders):
        row = fault()
        assert row.lost == 0 or row.fault.startswith("the server behind"), row
