"""`uvicorn onsight.asgi:app`: the server under a plain uvicorn."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import psutil
import pytest

from onsight.api.keys import new_key, write_keys
from onsight.config import Settings
from onsight.serve import assemble
from tests.servers import wait_until


def command(*more: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONSIGHT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "onsight.asgi:app", "--port", "0", *more],
        env={**clean, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def served(lines: list[str], *more: str, **environment: str) -> Iterator[str]:
    """The address of a running server; `lines` gets what it logs before it is ready, and at the end."""
    with command(*more, **environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line)
                if match := re.search(r"running on (http://\S+)", line):
                    yield match[1]
                    break
        finally:
            process.terminate()
            lines.extend(process.stderr)
            process.wait(30)


def test_it_is_ready_when_uvicorn_says_so_and_answers() -> None:
    lines: list[str] = []
    with served(lines, ONSIGHT_ENGINE="fake", APP_PORT="7860") as url:
        assert httpx.get(url + "/ready").status_code == 200
        body = {"messages": [{"role": "user", "content": "hello"}]}
        answer = httpx.post(url + "/v1/chat/completions", json=body).json()
        assert "fake engine: hello" in answer["choices"][0]["message"]["content"]
    log = "".join(lines)
    assert "port '7860' is taken from APP_PORT" in log
    assert "the option port has no effect here" in log
    assert "task=chat" in log
    assert "Application shutdown complete" in log


def test_it_takes_as_many_open_files_as_it_is_given() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lines: list[str] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with served(lines, ONSIGHT_ENGINE="fake"):
            (pid,) = re.findall(r"server process \[(\d+)\]", "".join(lines))
            assert psutil.Process(int(pid)).rlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1024) > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("options", "status"), [({}, 401), ({"no_auth": True}, 200), ({"api_key": "k"}, 200)])
async def test_another_program_may_listen_anywhere_but_without_a_key_only_loopback_answers(
    options: dict[str, object], status: int
) -> None:
    site = assemble(Settings(engine="fake", **options))
    transport = httpx.ASGITransport(site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:8000") as client:
        response = await client.get("/v1/models", headers={"authorization": "Bearer k", "host": "localhost"})
    await site.close()
    assert response.status_code == status


def test_under_a_root_path_keys_open_what_they_opened(tmp_path: Path) -> None:
    text, key = new_key("finder", ("embed",))
    write_keys(tmp_path / "keys.json", (key,))
    with served(
        [], "--root-path", "/onsight", ONSIGHT_ENGINE="fake", ONSIGHT_KEYS_FILE=str(tmp_path / "keys.json")
    ) as url:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {text}"}) as client:
            asked = {"messages": [{"role": "user", "content": "hello"}]}
            assert client.post("/v1/chat/completions", json=asked).status_code == 403
            assert client.get("/metrics").status_code == 403
            assert client.get("/v1/models").status_code == 200
        assert httpx.get(url + "/health").status_code == 200
        assert httpx.get(url + "/v1/models").status_code == 401


async def test_without_auth_everybody_is_let_in_by_whatever_name_since_another_program_listens() -> None:
    site = assemble(Settings(engine="fake", no_auth=True), lifespan=lambda _: nullcontext())
    transport = httpx.ASGITransport(site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:8000") as client:
        response = await client.get("/v1/models", headers={"host": "onsight.example"})
    await site.close()
    assert response.status_code == 200


def test_a_model_that_is_not_there_is_one_sentence_and_code_2() -> None:
    process = command(ONSIGHT_MODEL="no-such-model")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "no-such-model" in said


def test_it_answers_under_uvicorns_reloader(tmp_path: Path) -> None:
    lines: list[str] = []
    with served(lines, "--reload", "--reload-dir", str(tmp_path), ONSIGHT_ENGINE="fake") as url:
        wait_until(lambda: is_ready(url), 60)  # it tells the address before its child listens
    assert "Started reloader process" in "".join(lines)
