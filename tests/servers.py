"""Real `onsight serve` processes on loopback ports, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

START_S = 120


@dataclass
class Served:
    """A running server: its process, its address, and the lines that it logged so far."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def log(self) -> str:
        return "".join(self.lines)

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def served(*flags: str, **environment: str) -> Iterator[Served]:
    """Start `onsight serve --port 0 FLAGS`, wait until it is ready, and stop it by its own process id at the end.

    With a port in the environment, there is no --port. It has no page unless ONSIGHT_UI says so.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONSIGHT_")}
    port = () if {"PORT", "APP_PORT"} & environment.keys() else ("--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "onsight", "serve", *port, *flags],
        env={**clean, "ONSIGHT_UI": "off", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Served(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line)
            if match := re.search(r"ready in .* on (http://\S+?)\"?[,}]?$", line.strip()):
                server.url = match[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(START_S), "the server was not ready in time"
        assert server.url, f"the server ended with {process.wait(10)}: {server.log()}"
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        reader.join(10)


def wait_until(true: object, timeout_s: float = 20.0) -> None:
    """Poll the callable `true` until it is; AssertionError after `timeout_s` seconds."""
    assert callable(true)
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def get(server: Served, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=30)
