"""Does one fault after the other to real servers, and writes down what was lost and how long until they were ready.

python -m benchmarks.faults [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.report import ROOT, Aim, Cell, Report, Table, publish
from benchmarks.screens import data_url
from tests.media.papers import page, pdf
from tests.media.pictures import plain
from tests.servers import Served, served
from tests.stand_in_hub import put_in_cache
from training.export_gguf import export_gguf

RESULTS = ROOT / "docs" / "results"
CHAT = "/v1/chat/completions"
CONNECTIONS = 1000
LONG = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 2000}},
}
"""An answer of this form cannot end before its most tokens are written, however fast they are."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a client's request ended: the status (0: the connection broke), whether the answer was whole, an error."""

    status: int
    whole: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """`ended`: how those requests ended that had been accepted when it happened.

    `may_lose`: how many of them may end in an error: those that die with what was killed. `must_lose`: so many do, or
    the fault came too late to be one. `note`: what else was seen. `ready_s`: seconds until the server was ready again;
    None where it was ready all the time, or was to end. `exit_code`: of a server that was to end.
    """

    fault: str
    ended: list[Ended]
    may_lose: int = 0
    note: str = ""
    ready_s: float | None = None
    must_lose: int = 0
    exit_code: int = 0

    @property
    def lost(self) -> int:
        return sum(not one.whole for one in self.ended)

    @property
    def untold(self) -> int:
        """Those whose connection broke without a word."""
        return sum(one.status == 0 or (not one.whole and not one.error) for one in self.ended)

    @property
    def kept(self) -> bool:
        return self.must_lose <= self.lost <= self.may_lose and self.untold == 0 and self.exit_code == 0


def ask(url: str, text: str = "Say all that you can.", tokens: int = 150, **fields: object) -> Ended:
    """One streamed chat request, as its client sees it."""
    body: dict[str, object] = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    return send(url + CHAT, body | {"stream": True} | fields)


def send(url: str, body: dict[str, object]) -> Ended:
    try:
        answer = httpx.post(url, json=body, timeout=120)
    except httpx.HTTPError as error:
        return Ended(0, False, type(error).__name__)
    told = answer.text
    failed = answer.status_code != 200 or '"error":' in told
    code = told.partition('"code":"')[2].partition('"')[0] if failed else ""
    return Ended(answer.status_code, not failed and ("[DONE]" in told or "stream" not in body), code)


class Clients:
    """Requests that run beside the fault."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._asked: list[Future[Ended]] = []

    def ask(self, url: str, **fields: object) -> None:
        self._asked.append(self._pool.submit(ask, url, **fields))

    def ended(self) -> list[Ended]:
        return [one.result(150) for one in self._asked]


def until(true: Callable[[], bool], timeout_s: float = 60.0) -> float:
    """Seconds until it is so. Raises TimeoutError."""
    began_s = time.perf_counter()
    while not true():
        if time.perf_counter() - began_s > timeout_s:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)
    return time.perf_counter() - began_s


def running(server: Served) -> int:
    """Requests that an engine works on."""
    return sum(int(float(line.split()[-1])) for line in _metric(server, "num_requests_running"))


def _metric(server: Served, name: str) -> list[str]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return [line for line in lines if line.startswith(f"onsight_{name}{{")]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def told(ended: list[Ended]) -> str:
    """What those were told whose answers are not whole."""
    return ", ".join(sorted({f"{one.status or 'closed'} {one.error}" for one in ended if not one.whole})) or "nothing"


def terminated() -> Row:
    with served("peek") as server:
        clients = Clients(4)
        for _ in range(4):
            clients.ask(server.url, tokens=600, response_format=LONG)
        until(lambda: running(server) > 0)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        new = ask(server.url, "hi", 2)
        ended = clients.ended()
        code = server.process.wait(60)
    return Row("SIGTERM", ended, 0, f"a new one: {told([new])}; exit code {code}", exit_code=code)


def terminated_twice() -> Row:
    """Answers end seconds later: all of them are there to be cut."""
    with served("peek") as server:
        clients = Clients(4)
        for _ in range(4):
            clients.ask(server.url, tokens=1900, response_format=LONG)
        until(lambda: running(server) == 4)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        ended = clients.ended()
        code = server.process.wait(60)
    name = "SIGTERM twice, 0.2 s apart"
    return Row(name, ended, 4, f"exit code {code}", must_lose=4, exit_code=code)


def killed_pdf_child() -> Row:
    with served("peek") as server, ThreadPoolExecutor(1) as pool:
        body = {"image": "data:application/pdf;base64," + data_url(_slow_pdf()).partition(",")[2], "max_tokens": 4}
        clients = Clients(2)
        clients.ask(server.url)
        reading = pool.submit(send, f"{server.url}/v1/ocr", body)
        parent = psutil.Process(server.process.pid)
        until(lambda: any(child.cpu_times().user > 0.3 for child in parent.children(recursive=True)))
        for child in parent.children(recursive=True):
            child.kill()
        return Row("SIGKILL of the child that opens a PDF", [reading.result(), *clients.ended()], 1, must_lose=1)


def _slow_pdf() -> bytes:
    """A page whose drawing takes a while."""
    shape = b" ".join(b"%d %d m %d %d l S" % (n % 700, n % 900, n * 7 % 700, n * 13 % 900) for n in range(150_000))
    return pdf([page(shape, 700, 900)])


def killed_llama_child(folder: Path) -> Row:
    export_gguf(ROOT / "src/onsight/bundled/peek", folder, "peek")
    return _killed_engine("llama.cpp", served(str(folder / "peek.gguf")))


def killed_vllm_child(folder: Path) -> Row:
    """A stand-in's answers take two seconds."""
    program = folder / "vllm"
    stand_in = f"{sys.executable} -m tests.engines.upstream_engine.stand_in_vllm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {stand_in} "$@"\n')
    program.chmod(0o755)
    flags = ("org/model", "--engine", "vllm", "--vllm-args=--pause-s 1")
    return _killed_engine("vLLM (a stand-in for it)", served(*flags, ONSIGHT_VLLM=str(program)))


def _killed_engine(name: str, serving: AbstractContextManager[Served]) -> Row:
    """Requests in the middle of their answers die with the child."""
    with serving as server:
        clients = Clients(3)
        for _ in range(2):
            clients.ask(server.url, tokens=1900, response_format=LONG)
        until(lambda: running(server) == 2)
        time.sleep(0.2)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        until(lambda: not is_ready(server.url))
        clients.ask(server.url, tokens=4)
        ready_s = until(lambda: is_ready(server.url))
        ended = clients.ended()
        assert ask(server.url, "hi", 4).whole
    return Row(f"SIGKILL of the {name} child; one request more before it is back", ended, 2, "", ready_s, must_lose=2)


_STUCK = """
import os, sys, threading, time

def watch():
    while not os.path.exists({flag!r}):
        time.sleep(0.01)
    runner = sys.modules["onsight.engines.torch_engine.runner"].Runner
    decode = runner.decode

    def stuck(self, sequences):
        while os.path.exists({flag!r}):
            time.sleep(0.01)
        return decode(self, sequences)

    runner.decode = stuck

threading.Thread(target=watch, daemon=True).start()
"""
"""What Python runs as it starts: from when the file `flag` is there, and for as long, no step of the engine ends."""


def stalled(folder: Path) -> Row:
    flag, own = folder / "stuck", folder / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(_STUCK.format(flag=str(flag)))
    path = os.pathsep.join((str(own), *filter(None, [os.environ.get("PYTHONPATH")])))
    with served("peek", "--stall-timeout-s", "2", PYTHONPATH=path) as server:
        flag.touch()
        time.sleep(0.1)
        clients = Clients(4)
        for _ in range(4):
            clients.ask(server.url)
        until(lambda: not is_ready(server.url))
        new = ask(server.url, "hi", 2)
        flag.unlink()
        ready_s = until(lambda: is_ready(server.url))
        ended = clients.ended()
    return Row("the engine is stuck in a step", ended, 0, f"a new one: {told([new])}", ready_s)


def out_of_memory() -> Row:
    with served("peek") as server:
        clients = Clients(2)
        clients.ask(server.url, tokens=400, response_format=LONG)
        until(lambda: running(server) > 0)
        process = psutil.Process(server.process.pid)
        most = process.memory_info().vms + (64 << 20)
        process.rlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        large = plain(size=(8000, 4900))
        content = [{"type": "image_url", "image_url": {"url": data_url(large)}}, {"type": "text", "text": "hi"}]
        lost = ask(server.url, messages=[{"role": "user", "content": content}])
        process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ended = clients.ended()
        assert ask(server.url, "hi", 4).whole
        now = "ready" if is_ready(server.url) else "not ready"
        assert lost.error == "out_of_memory", lost
    return Row("no memory for a picture of 39 Mpx", [lost, *ended], 1, f"the server was {now}", must_lose=1)


def no_disk(folder: Path) -> Row:
    cache, temporary = folder / "cache", folder / "temporary"
    temporary.mkdir()
    here = put_in_cache(cache, "org/peek", ROOT / "src/onsight/bundled/peek")
    with served("org/peek", TMPDIR=str(temporary), **here) as server:
        for gone in (cache, temporary):
            shutil.rmtree(gone)
        psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (0, 0))
        content = [{"type": "image_url", "image_url": {"url": data_url(plain())}}, {"type": "text", "text": "hi"}]
        ended = [ask(server.url, messages=[{"role": "user", "content": content}], tokens=8) for _ in range(3)]
    return Row("the cache with the model and the temporary folder are deleted, no file can be written", ended)


def cut_upstream() -> Row:
    with ExitStack() as stack:
        port = _free_port()
        inner = stack.enter_context(served("peek", PORT=str(port)))
        server = stack.enter_context(served("--upstream", inner.url, "--max-model-len", "2048"))
        clients = Clients(2)
        for _ in range(2):
            clients.ask(server.url, tokens=600, response_format=LONG)
        until(lambda: running(inner) > 0)
        time.sleep(0.3)
        inner.process.kill()
        ended = clients.ended()
        until(lambda: not is_ready(server.url))
        began_s = time.perf_counter()
        stack.enter_context(served("peek", PORT=str(port)))
        started_s = time.perf_counter() - began_s
        ready_s = until(lambda: is_ready(server.url))
        assert ask(server.url, "hi", 4).whole
    note = f"counted from when the other server was back, after {started_s:.1f} s"
    return Row("the server behind --upstream is killed", ended, 2, note, ready_s, must_lose=2)


def many_connections() -> Row:
    # The server inherits it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        served("peek", "--max-connections", str(CONNECTIONS), "--head-timeout-s", "60") as server,
        ExitStack() as stack,
    ):
        clients = Clients(2)
        clients.ask(server.url, tokens=300, response_format=LONG)
        until(lambda: running(server) > 0)
        host, port = server.url.removeprefix("http://").split(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(CONNECTIONS)]
        time.sleep(1)
        refused = sum(b" 503 " in _come(connection) for connection in silent)
        ended = clients.ended()
        stack.close()
        until(lambda: is_ready(server.url))
    assert refused, "all were let in beside the one at work"
    note = f"{refused} of {CONNECTIONS} silent connections were told 503, the others were kept open"
    return Row(f"{CONNECTIONS} connections", ended, 0, note)


def slow_senders(count: int = 100) -> Row:
    with served("peek", "--body-timeout-s", "2") as server, ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n"
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(count)]
        for connection in slow:
            connection.sendall(head.encode() + b"{")
        ended = [ask(server.url, "hi", 4) for _ in range(10)]
        late = sum(b" 408 " in connection.recv(200) for connection in slow)
    assert late == count, late
    note = f"{late} of {count} that sent one byte of a body were told 408 after --body-timeout-s 2"
    return Row(f"{count} slow senders", ended, 0, note)


def _come(connection: socket.socket) -> bytes:
    """What has come over it so far."""
    connection.setblocking(False)
    try:
        return connection.recv(200)
    except BlockingIOError:
        return b""


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def faults(folder: Path) -> tuple[Callable[[], Row], ...]:
    """All of them; `folder` is empty, and theirs."""
    return (
        terminated,
        terminated_twice,
        killed_pdf_child,
        lambda: killed_llama_child(folder),
        lambda: killed_vllm_child(folder),
        lambda: stalled(folder),
        out_of_memory,
        lambda: no_disk(folder),
        cut_upstream,
        many_connections,
        slow_senders,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for fault in faults(Path(temporary)):
            rows.append(fault())
            # After each one, so that a run that is cut keeps what it has.
            publish(report(rows), arguments.out)


def report(rows: list[Row]) -> Report:
    columns = ("fault", "running", "of them lost", "may be lost", "what the lost were told", "else", "ready again, s")
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        ready = "-" if row.ready_s is None else row.ready_s
        cells.append((row.fault, len(row.ended), row.lost, row.may_lose, told(row.ended), row.note or "-", ready))
    aims = (
        Aim("accepted requests lost beyond those that may be", 0, sum(max(0, r.lost - r.may_lose) for r in rows), ""),
        Aim("requests that ended without a word", 0, sum(row.untold for row in rows), ""),
        Aim("requests that a fault was to cut and did not", 0, sum(max(0, r.must_lose - r.lost) for r in rows), ""),
        Aim("servers that were to end and did not with 0", 0, sum(row.exit_code != 0 for row in rows), ""),
    )
    notes = (
        "Each row is a server of its own, with Peek; `running` requests had been accepted when the fault came. A lost"
        " one ended in an error or a closed connection instead of a whole answer; none was left without an end.",
        "`may be lost`: those that work in what is killed, want the memory that is not there, or are cut by a second"
        " SIGTERM; of all others none.",
        "`ready again` is the time from when /ready said 503 until it said 200; `-`: it never said 503, or was to end.",
    )
    return Report("faults", "What each fault costs", aims, (Table("Faults", columns, tuple(cells)),), notes)


if __name__ == "__main__":
    main()
