"""Peek behind a real server that goes by the names of the services it stands in for, and pictures to show to it."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import Served, served
from training.draw import EVALUATION_STYLE, draw_screen

HOLO = "Hcompany/Holo1.5-7B"

Bash = Callable[[str], str]


@dataclass(frozen=True)
class Pictures:
    """A folder with `screenshot.png` and `image.jpg`, which also lies under `url`."""

    folder: Path
    url: str

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    folder = tmp_path_factory.mktemp("pictures")
    screen = draw_screen(7_100_000, EVALUATION_STYLE).image
    screen.save(folder / "screenshot.png")
    screen.convert("RGB").save(folder / "image.jpg", quality=95)
    shelf = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), shelf) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Pictures(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join(10)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Standard error belongs to the tests."""


@pytest.fixture(scope="session")
def server(pictures: Pictures) -> Iterator[Served]:
    """It may fetch from the pictures' address alone, as the documents' examples fetch from the internet."""
    fetching = ("--media-remote", "allow-list", "--media-allowed-hosts", "127.0.0.1")
    ports = ("--media-allowed-ports", pictures.port)
    with served("peek", "--served-model-name", HOLO, "--served-model-name", "peek", *fetching, *ports) as running:
        yield running


@pytest.fixture
def bash(pictures: Pictures) -> Bash:
    """Runs a document's lines beside the pictures; returns what they print."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def run(lines: str) -> str:
        done = subprocess.run(
            ["bash", "-c", lines], cwd=pictures.folder, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    return run
