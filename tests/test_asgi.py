"""`uvicorn onsight.asgi:app` serves, with a key or a clear word, and says in one line why it does not start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.servers import wait_until


def start(log: Path, **environment: str) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONSIGHT_")}
    command = [sys.executable, "-m", "uvicorn", "onsight.asgi:app", "--port", "0"]
    with log.open("wb") as file:
        return subprocess.Popen(command, env={**clean, **environment}, stderr=file, stdout=file)


def test_another_web_server_serves_the_app_and_closes_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(log, ONSIGHT_ENGINE="fake", ONSIGHT_API_KEY="k")
    try:
        wait_until(lambda: process.poll() is not None or "running on" in log.read_text(), 60)
        found = re.search(r"running on (http://\S+)", log.read_text())
        assert found, log.read_text()
        body = {"messages": [{"role": "user", "content": "hello"}]}
        with httpx.Client(base_url=found[1]) as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 401
            answer = client.post("/v1/chat/completions", json=body, headers={"x-api-key": "k"})
        assert "fake engine: hello" in answer.json()["choices"][0]["message"]["content"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "Traceback" not in log.read_text()
    assert "Application shutdown complete" in log.read_text() or "Finished server process" in log.read_text()


def test_why_it_does_not_start_is_one_line(tmp_path: Path) -> None:
    for environment, why in (
        ({"ONSIGHT_ENGINE": "fake"}, "set ONSIGHT_API_KEY, or ONSIGHT_NO_AUTH=true"),
        ({"ONSIGHT_MODEL": "no-such-model", "ONSIGHT_NO_AUTH": "true"}, "no-such-model"),
    ):
        log = tmp_path / "log"
        assert start(log, **environment).wait(60) == 3
        assert why in log.read_text()
        assert "Traceback" not in log.read_text()
