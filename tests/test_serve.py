"""The server as a process: it starts, says when it is ready, drains on SIGTERM, refuses in one sentence."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import uvicorn

from onsight.config import Settings
from onsight.serve import DrainingServer, Site, listen_and_serve, listen_on
from onsight.tasks.admission import Admission
from tests.api.conftest import until
from tests.servers import get, served, wait_until
from tests.stand_in_hub import StandInHub, repo_of, stand_in_hub
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import write_smolvlm


def ask(text: str, **options: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **options}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onsight", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_it_answers_and_ends_with_code_zero_on_sigterm() -> None:
    with served("--engine", "fake") as server:
        assert get(server, "/ready").status_code == 200
        answer = httpx.post(server.url + "/v1/chat/completions", json=ask("hello"))
        assert "fake engine: hello" in answer.json()["choices"][0]["message"]["content"]
        assert server.stop() == 0
    (line,) = [line for line in server.lines if answer.headers["x-request-id"] in line]
    assert "reason" in line


def test_a_running_stream_finishes_while_the_server_stops_and_new_requests_are_refused() -> None:
    with served("--engine", "fake", ONSIGHT_LOG_FORMAT="json") as server:
        body = ask("word " * 300, stream=True, max_tokens=2000)
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            rest = [line for line in lines if line]
        stopping.join(60)
        assert rest[-1] == "data: [DONE]"
        assert server.process.returncode == 0
    assert all(json.loads(line) for line in server.lines)


def test_an_open_page_does_not_keep_the_server_from_ending() -> None:
    """A tab of the page holds a stream for as long as it is open."""
    pytest.importorskip("gradio")
    with served("--engine", "fake", ONSIGHT_UI="on") as server:
        tab = f"{server.url}/ui/en/gradio_api/heartbeat/tab"
        with httpx.stream("GET", tab, headers={"accept": "text/event-stream"}, timeout=60) as stream:
            pieces = stream.iter_text()
            assert "ALIVE" in next(pieces)
            assert server.stop() == 0
            assert "".join(pieces) == ""
    assert "Cancel" not in server.log(), "the stream was cut, not ended"


async def test_what_never_ends_is_cut_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has no place in the queue, such as an upload to the page."""

    async def endless(scope: object, receive: object, send: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("onsight.serve._LAST_BYTES_S", 1)
    listening = listen_on(Settings(port=0))
    config = uvicorn.Config(endless, lifespan="off", log_config=None)
    server = DrainingServer(config, Admission(1), 0.0, lambda: None)
    async with asyncio.timeout(20):
        serving = asyncio.create_task(server.serve([listening]))
        _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: bool(server.server_state.tasks))
        server.stop()
        await serving
        writer.close()


async def test_a_signal_that_comes_while_engines_are_closed_cuts_nothing() -> None:
    """The server has ended by then; without its handler the signal would be this process's end."""
    closed = []

    async def nothing(*_: object) -> None:
        return

    async def close() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        closed.append(True)

    site = SimpleNamespace(
        app=nothing, admission=Admission(1), metrics=SimpleNamespace(refuse=None), roster=SimpleNamespace(models=()),
        end_streams=lambda: None, start=nothing, close=close,
    )  # fmt: skip
    async with asyncio.timeout(20):
        await listen_and_serve(cast(Site, site), Settings(port=0), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert closed


def test_in_a_log_of_json_the_figures_of_a_request_are_fields() -> None:
    with served("--engine", "fake", ONSIGHT_LOG_FORMAT="json") as server:
        answered = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", max_tokens=3))
        refused = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", no_such_field=1))
        unknown = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", model="a\u2028b"))
        assert server.stop() == 0
    assert all(line.isascii() for line in server.lines)
    told = {entry.get("request_id"): entry for entry in map(json.loads, server.lines)}
    whole = told[answered.headers["x-request-id"]]
    assert {name: whole[name] for name in ("task", "model", "tokens_in", "tokens_out", "reason")} == {
        "task": "chat", "model": answered.json()["model"], "tokens_in": 1, "tokens_out": 3, "reason": "length"
    }  # fmt: skip
    assert 0 <= whole["seconds"] < 60
    short = told[refused.headers["x-request-id"]]
    assert (short["status"], short["reason"], short["path"]) == (400, "unknown_field", "/v1/chat/completions")
    assert told[unknown.headers["x-request-id"]]["reason"] == "model_not_found"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "no-such-model"), "no-such-model"),
        (("serve", "--host", "0.0.0.0"), "ONSIGHT_API_KEY"),
        (("serve", "--device", "tpu"), "tpu"),
        (("chat", "-a", "/no/such/picture.png", "what?"), "/no/such/picture.png"),
        (("chat", "--url", "http://127.0.0.1:9", "what?"), "cannot be reached"),
    ],
)
def test_what_cannot_start_is_one_sentence_and_code_2(arguments: tuple[str, ...], said: str) -> None:
    done = start(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    done = start("serve", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("EMBEDDER", "peek"), "is no chat model: ColQwen2.5 can embed only"),
        (("peek", "peek"), "makes no vectors"),
        (
            ("peek", "EMBEDDER", "--served-embed-name", "a", "--served-embed-name", "peek"),
            "both models are called peek",
        ),
        (("peek", "no-such-model"), "no-such-model"),
    ],
)
def test_two_models_are_one_that_chats_and_one_that_makes_vectors(
    tmp_path: Path, models: tuple[str, ...], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ColQwen2_5"], "model_type": "qwen2_5_vl"}))
    done = start("serve", *(word.replace("EMBEDDER", str(tmp_path)) for word in models))
    assert done.returncode == 2
    assert said in done.stderr


def test_the_fake_engine_makes_no_vectors() -> None:
    done = start("serve", "--engine", "fake", "peek", "somewhere")
    assert done.returncode == 2
    assert "the fake engine makes no vectors" in done.stderr


@pytest.mark.model
def test_a_chat_model_and_an_embedding_model_are_served_by_one_process(tmp_path: Path) -> None:
    folder = write_colqwen(tmp_path / "colqwen")
    with served("peek", str(folder), "--served-embed-name", "pages", "--served-embed-name", "colqwen") as server:
        assert get(server, "/ready").json()["models"] == {"peek": "ready", "pages": "ready"}
        assert {one["id"]: one["capabilities"] for one in get(server, "/v1/models").json()["data"]}["colqwen"] == [
            "embed"
        ]
        assert get(server, "/v1/models/colqwen").json()["root"] == "pages"
        answer = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", max_tokens=3), timeout=60)
        assert answer.json()["model"] == "peek"
        refused = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", model="pages"))
        assert refused.status_code == 400
        assert "makes vectors" in refused.json()["error"]["message"]
        assert server.stop() == 0
    assert "peek, pages, colqwen on http" in server.log()


@pytest.mark.model
def test_without_a_name_both_bundled_models_are_served_and_each_request_finds_its_own() -> None:
    with served() as server:
        assert get(server, "/ready").json()["models"] == {"peek": "ready", "leaf": "ready"}
        assert [one["id"] for one in get(server, "/v1/models").json()["data"]] == ["peek", "leaf"]
        answer = httpx.post(server.url + "/v1/chat/completions", json=ask("hello", max_tokens=3), timeout=60)
        assert answer.json()["model"] == "peek"
        vectors = httpx.post(server.url + "/v1/embeddings", json={"input": "harbour"}, timeout=60)
        assert vectors.json()["model"] == "leaf"
        assert get(server, "/info").json()["dim"] == 128
    assert "peek, leaf on http" in server.log()


def test_small_pieces_are_sent_at_once() -> None:
    with listen_on(Settings(port=0)) as listening:
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_one_sentence() -> None:
    with served("--engine", "fake") as server:
        port = server.url.rsplit(":", 1)[1]
        done = start("serve", "--engine", "fake", "--port", port)
        assert done.returncode == 2
        assert port in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    folder = write_smolvlm(tmp_path_factory.mktemp("tiny"))
    with stand_in_hub(org__tiny=repo_of(folder)) as running:
        yield running


@contextmanager
def downloading(hub: StandInHub, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose model is on its way and does not come until `hub.flows`; and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ONSIGHT_", "HF_"))}
    command = [sys.executable, "-m", "onsight", "serve", "org/tiny", "--no-ui", "--device", "cpu", "--port", port]
    environment = {**clean, **hub.environment(home)}
    hub.asked.clear()
    hub.flows.clear()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any(line.startswith("GET /stored/") for line in hub.asked), 60)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        hub.flows.set()
        process.kill()
        process.communicate()


@pytest.mark.model
def test_while_a_model_is_downloaded_the_port_answers_that_it_is_not_ready(hub: StandInHub, tmp_path: Path) -> None:
    with downloading(hub, tmp_path) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        for path in ("/ready", "/health", "/v1/models"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["status"] == "loading"
            assert "downloaded" in answer.json()["error"]["message"]
        refused = start("serve", "--engine", "fake", "--port", url.rsplit(":", 1)[1])
        assert refused.returncode == 2
        hub.flows.set()
        seen = set()

        def is_ready() -> bool:
            with suppress(httpx.TransportError):  # the moment in which the application takes over
                seen.add(client.get("/ready").status_code)
            return 200 in seen

        wait_until(is_ready, 60)
        assert seen == {503, 200}
        assert client.get("/v1/models").json()["data"][0]["id"] == "org/tiny"
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_download_at_once(hub: StandInHub, tmp_path: Path, number: signal.Signals) -> None:
    with downloading(hub, tmp_path) as (process, _):
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "stopped before the model began to load" in process.stderr.read()


@pytest.mark.model
def test_a_taken_port_is_told_before_anything_is_downloaded(hub: StandInHub, tmp_path: Path) -> None:
    hub.asked.clear()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in hub.environment(tmp_path).items():
                patch.setenv(name, value)
            done = start("serve", "org/tiny", "--port", port)
    assert done.returncode == 2
    assert port in done.stderr
    assert hub.asked == []


def test_chat_asks_a_running_server_and_streams() -> None:
    with served("--engine", "fake", ONSIGHT_API_KEY="k") as server:
        done = start("chat", "--url", server.url, "--api-key", "k", "how are you?")
        assert done.returncode == 0, done.stderr
        assert "fake engine: how are you?" in done.stdout
        refused = start("chat", "--url", server.url, "--api-key", "wrong", "how are you?")
        assert refused.returncode == 2
        assert "401" in refused.stderr


def test_openapi_is_written_and_names_the_routes(tmp_path: Path) -> None:
    out = tmp_path / "openapi.json"
    assert start("openapi", "--out", str(out)).returncode == 0
    assert "/v1/chat/completions" in json.loads(out.read_text())["paths"]
