"""A server as a child process: started, waited for, weighed, and stopped by its own process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.01


class ServerFailed(RuntimeError):
    """A server did not start, or died; the text ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server: the arguments after `python`, and the path that answers 200 once it is ready.

    `{port}` in an argument stands for the port, always on 127.0.0.1. `model`: what requests call the model.
    """

    name: str
    arguments: tuple[str, ...]
    ready_path: str
    model: str = "peek"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready. `start_s`: seconds from the process's start until it was."""

    name: str
    model: str
    url: str
    process: subprocess.Popen[bytes]
    start_s: float

    def resident_mb(self) -> float:
        """Resident memory of the process and its children, in megabytes (2**20 bytes)."""
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        return sum(map(_resident_bytes, family)) / 2**20

    @contextmanager
    def alone(self, others: Sequence[RunningServer]) -> Iterator[None]:
        """Meanwhile `others` (this server may be among them) get no processor time at all."""
        stopped = [other for other in others if other is not self]
        for other in stopped:
            other.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for other in stopped:
                other.process.send_signal(signal.SIGCONT)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:  # a child that was listed, and has ended since
        return 0


def model_folder(model: str) -> Path:
    """The folder of a bundled model's name, or of a path."""
    bundled = ROOT / "src" / "onsight" / "bundled" / model
    return bundled if bundled.is_dir() else Path(model).resolve()


def onsight(folder: str, *options: str) -> Command:
    """`onsight serve` on the model in `folder` (or the bundled one by name), which clients call "peek"."""
    arguments = ("-m", "onsight", "serve", folder, "--served-model-name", "peek", "--port", "{port}")
    return Command("Onsight", (*arguments, *options), "/ready")


def transformers_serve(folder: Path, *options: str) -> Command:
    """The peer in `peers/transformers_serve.py`; its clients call the model by its folder."""
    arguments = ("-m", "benchmarks.peers.transformers_serve", str(folder), "{port}")
    return Command("transformers serve", (*arguments, *options), "/health", model=str(folder))


def generate_app(folder: Path, *options: str) -> Command:
    """The peer in `peers/generate_app.py`."""
    arguments = ("-m", "benchmarks.peers.generate_app", str(folder), "{port}")
    return Command("generate app", (*arguments, *options), "/health")


@contextmanager
def running(command: Command, logs: Path) -> Iterator[RunningServer]:
    """Start the server, wait until it is ready, and stop it at the end. Raises ServerFailed.

    The log goes to a file in the folder `logs`. No `ONSIGHT_` variable of the caller reaches the server, and nothing
    is looked for on the Hub.
    """
    port = free_port()
    arguments = [argument.format(port=port) for argument in command.arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONSIGHT_")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    log_path = logs / f"{command.name.replace(' ', '-')}-{port}.log"
    with log_path.open("wb") as log:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url + command.ready_path, log_path, command.name)
            yield RunningServer(command.name, command.model, url, process, time.perf_counter() - began_s)
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log_path: Path, name: str) -> None:
    """Poll `url` until it answers 200."""
    deadline_s = time.perf_counter() + START_TIMEOUT_S
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while time.perf_counter() < deadline_s:
            if process.poll() is not None:
                raise ServerFailed(f"{name} ended with code {process.returncode}:\n{_tail(log_path)}")
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_POLL_S)
    raise ServerFailed(f"{name} was not ready within {START_TIMEOUT_S:.0f} s:\n{_tail(log_path)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
