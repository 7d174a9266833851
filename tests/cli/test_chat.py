"""`onsight chat` tells pictures from videos by their bytes, and sends each as what it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onsight.cli import commands
from tests.media.clips import clip, gif
from tests.media.pictures import plain


class _Fine(BaseHTTPRequestHandler):
    """Answers "fine" and notes what it was asked."""

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))  # type: ignore[attr-defined]
        chunk = json.dumps({"choices": [{"delta": {"content": "fine"}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """A real server on loopback; `asked` are the bodies of its requests."""
    made = HTTPServer(("127.0.0.1", 0), _Fine)
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_files_are_sent_as_what_they_are(server: HTTPServer, tmp_path: Path) -> None:
    files = {"a": clip(frames=2), "b": clip("webm", "libvpx", 2), "c": plain(), "d": gif()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    attached = [word for name in files for word in ("-a", str(tmp_path / name))]
    attached += ["-a", "https://films.example/clip.MP4?x=1", "-a", "https://films.example/still.png"]
    done = CliRunner().invoke(commands, ["chat", "--url", f"http://127.0.0.1:{server.server_port}", *attached, "What?"])
    assert (done.exit_code, done.stdout) == (0, "fine\n")
    (message,) = server.asked[0]["messages"]  # type: ignore[attr-defined]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["video_url", "video_url", "image_url", "image_url", "video_url", "image_url", "text"]
    assert message["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert message["content"][4]["video_url"]["url"] == "https://films.example/clip.MP4?x=1"
