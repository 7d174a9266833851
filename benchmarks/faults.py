"""Does one fault after the other to real servers, and writes down what was lost and how long until they were ready.

python -m benchmarks.faults [--out FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.report import ROOT, Cell, Report, Table, publish
from benchmarks.screens import data_url
from tests.media.papers import page, pdf
from tests.media.pictures import plain
from tests.servers import Served, served
from training.export_gguf import export_gguf

RESULTS = ROOT / "docs" / "results"
CHAT = "/v1/chat/completions"
CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """`running`: requests that had been accepted when it happened; `lost`: those of them that got no whole answer.

    `told`: what the lost ones and new ones were told. `ready_s`: seconds until the server was ready again; None where
    it was ready all the time, or was to end.
    """

    fault: str
    running: int
    lost: int
    told: str
    ready_s: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a client's request ended: the status (0: the connection broke), whether the answer was whole, an error."""

    status: int
    whole: bool
    error: str = ""


def ask(url: str, text: str = "Say all that you can.", tokens: int = 150, **fields: object) -> Ended:
    """One streamed chat request, as its client sees it; so hot that the answer does not end by itself."""
    body: dict[str, object] = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    return send(url + CHAT, body | {"stream": True, "temperature": 2} | fields)


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
    return sum(float(line.split()[-1]) > 0 for line in _metric(server, "num_requests_running"))


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


def terminated(*, twice: bool) -> Row:
    with served("peek") as server:
        clients = Clients(4)
        for _ in range(4):
            clients.ask(server.url, tokens=600)
        until(lambda: running(server) > 0)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        new = ask(server.url, "hi", 2)
        if twice:
            server.process.send_signal(signal.SIGTERM)
        ended = clients.ended()
        code = server.process.wait(60)
    lost = [one for one in ended if not one.whole]
    name = "SIGTERM twice, 0.2 s apart" if twice else "SIGTERM"
    return Row(name, 4, len(lost), f"lost: {told(ended)}; new: {told([new])}; exit code {code}", None)


def killed_pdf_child() -> Row:
    with served("peek") as server, ThreadPoolExecutor(1) as pool:
        body = {"image": "data:application/pdf;base64," + data_url(_slow_pdf()).partition(",")[2], "max_tokens": 4}
        clients = Clients(2)
        clients.ask(server.url)
        reading = pool.submit(send, f"{server.url}/v1/ocr", body)
        parent = psutil.Process(server.process.pid)
        until(lambda: bool(parent.children()) or reading.done())
        for child in parent.children():
            child.kill()
        lost = reading.result()
        ended = clients.ended()
        return Row("SIGKILL of the child that opens a PDF", 2, 1, f"{told([lost])}; the other: {told(ended)}", None)


def _slow_pdf() -> bytes:
    """A page whose drawing takes a while."""
    shape = b" ".join(b"%d %d m %d %d l S" % (n % 700, n % 900, n * 7 % 700, n * 13 % 900) for n in range(150_000))
    return pdf([page(shape, 700, 900)])


def killed_llama_child(folder: Path) -> Row:
    export_gguf(ROOT / "src/onsight/bundled/peek", folder, "peek")
    with served(str(folder / "peek.gguf")) as server:
        clients = Clients(3)
        for _ in range(2):
            clients.ask(server.url, tokens=400)
        until(lambda: running(server) > 0)
        time.sleep(0.2)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        until(lambda: not is_ready(server.url))
        clients.ask(server.url, tokens=4)
        ready_s = until(lambda: is_ready(server.url))
        ended = clients.ended()
        assert ask(server.url, "hi", 4).whole
    return Row(
        "SIGKILL of the llama.cpp child; one request more before it is back",
        3,
        sum(not one.whole for one in ended),
        told(ended),
        ready_s,
    )


def stalled() -> Row:
    with served("peek", "--stall-timeout-s", "0.15", "--max-num-seqs", "16") as server:
        clients = Clients(16)
        for number in range(16):
            clients.ask(server.url, text=f"{number} " + "word " * 1800, tokens=4)
        until(lambda: not is_ready(server.url))
        ready_s = until(lambda: is_ready(server.url))
        ended = clients.ended()
    refused = sum(one.status == 503 for one in ended)
    taken = [one for one in ended if one.status != 503]
    lost = sum(not one.whole for one in taken)
    note = f"/ready said 503 in steps longer than --stall-timeout-s 0.15, {refused} new requests too; {told(taken)}"
    return Row("the engine does not get on", len(taken), lost, note, ready_s)


def out_of_memory() -> Row:
    with served("peek") as server:
        clients = Clients(2)
        clients.ask(server.url, tokens=400)
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
    lost_count = sum(not one.whole for one in [lost, *ended])
    return Row("no memory for a picture of 39 Mpx", 2, lost_count, f"{told([lost])}; the server was {now}", None)


def no_disk(folder: Path) -> Row:
    model = folder / "model"
    model.mkdir()
    for file in (ROOT / "src/onsight/bundled/peek").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with served(str(model), TMPDIR=str(folder), HF_HOME=str(folder / "cache")) as server:
        for file in model.iterdir():
            file.unlink()
        model.rmdir()
        psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (0, 0))
        content = [{"type": "image_url", "image_url": {"url": data_url(plain())}}, {"type": "text", "text": "hi"}]
        ended = [ask(server.url, messages=[{"role": "user", "content": content}], tokens=8) for _ in range(3)]
    lost = sum(not one.whole for one in ended)
    return Row("the model's folder is deleted, no file can be written", 3, lost, told(ended), None)


def cut_upstream() -> Row:
    with ExitStack() as stack:
        port = _free_port()
        inner = stack.enter_context(served("peek", PORT=str(port)))
        server = stack.enter_context(served("--upstream", inner.url, "--max-model-len", "2048"))
        clients = Clients(2)
        for _ in range(2):
            clients.ask(server.url, tokens=600)
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
    note = f"{told(ended)}; counted from when the other server was back, after {started_s:.1f} s"
    return Row("the server behind --upstream is killed", 2, sum(not one.whole for one in ended), note, ready_s)


def many_connections() -> Row:
    with (
        served("peek", "--max-connections", str(CONNECTIONS), "--head-timeout-s", "60") as server,
        ExitStack() as stack,
    ):
        clients = Clients(2)
        clients.ask(server.url, tokens=300)
        until(lambda: running(server) > 0)
        host, port = server.url.removeprefix("http://").split(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(CONNECTIONS)]
        time.sleep(1)
        refused = sum(b" 503 " in _come(connection) for connection in silent)
        ended = clients.ended()
        stack.close()
        ready_s = until(lambda: is_ready(server.url))
    note = f"{refused} of {CONNECTIONS} silent connections were told 503, the others were kept open"
    return Row(f"{CONNECTIONS} connections", 1, sum(not one.whole for one in ended), note, ready_s)


def slow_senders(count: int = 100) -> Row:
    with served("peek", "--body-timeout-s", "2") as server, ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n"
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(count)]
        for connection in slow:
            connection.sendall(head.encode() + b"{")
        ended = [ask(server.url, "hi", 4) for _ in range(10)]
        late = sum(b" 408 " in connection.recv(200) for connection in slow)
    note = f"{late} of {count} that sent one byte of a body were told 408 after --body-timeout-s 2"
    return Row(f"{count} slow senders", 10, sum(not one.whole for one in ended), note, None)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        faults: tuple[Callable[[], Row], ...] = (
            lambda: terminated(twice=False),
            lambda: terminated(twice=True),
            killed_pdf_child,
            lambda: killed_llama_child(folder),
            stalled,
            out_of_memory,
            lambda: no_disk(folder),
            cut_upstream,
            many_connections,
            slow_senders,
        )
        for fault in faults:
            rows.append(fault())
            # After each one, so that a run that is cut keeps what it has.
            publish(report(rows), arguments.out)


def report(rows: list[Row]) -> Report:
    columns = ("fault", "running", "of them lost", "what clients were told", "ready again, s")
    cells: tuple[tuple[Cell, ...], ...] = tuple(
        (row.fault, row.running, row.lost, row.told, "-" if row.ready_s is None else row.ready_s) for row in rows
    )
    notes = (
        "Each row is a server of its own, with Peek; `running` requests had been accepted when the fault came. A lost"
        " one ended in an error or a closed connection instead of a whole answer; none was left without an end.",
        "`ready again` is the time from when /ready said 503 until it said 200; `-`: it never said 503, or was to end.",
    )
    return Report("faults", "What each fault costs", (), (Table("Faults", columns, cells),), notes)


if __name__ == "__main__":
    main()
