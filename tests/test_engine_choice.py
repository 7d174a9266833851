"""Which engine runs what, what is refused, and each of the others behind `onsight serve`."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import signal
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image as Pillow

from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.engine_choice import build_roster, choose_kind
from tests.servers import get, served, wait_until

ROOT = Path(__file__).parents[1]


def chosen(**fields: object) -> str:
    return choose_kind(Settings.model_validate(fields))[0]


def test_files_family_and_device_choose_the_engine() -> None:
    assert chosen() == "torch"
    assert chosen(model="a/model.gguf") == "llama"
    assert chosen(model="owner/name:Q8_0") == "llama"
    assert chosen(upstream="http://127.0.0.1:1") == "upstream"
    gpu = {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "device": "cuda"}
    assert chosen(**gpu) == "torch"
    assert chosen(**gpu, vllm="/opt/vllm") == "vllm"
    assert chosen(**gpu | {"device": "cpu"}, vllm="/opt/vllm") == "torch"
    assert chosen(model="meta-llama/Llama-3.2-11B-Vision-Instruct", device="cuda", vllm="/opt/vllm") == "torch"
    assert chosen(engine="fake") == "fake"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "a.gguf", "engine": "torch"}, "only the engine llama"),
        ({"engine": "llama"}, "no GGUF file"),
        ({"engine": "upstream"}, "--upstream URL"),
        ({"engine": "vllm"}, "ONSIGHT_VLLM"),
        ({"engine": "vllm", "vllm": sys.executable, "vllm_args": "--x '"}, "vllm_args"),
        ({"mmproj": "x.gguf"}, "mmproj"),
        ({"model": "a.gguf", "dtype": "float32"}, "dtype"),
        ({"model": "a.gguf", "device": "cuda"}, "llama-server PATH"),
        ({"model": "a.gguf", "device": "cpu", "dtype": "auto"}, "there is no file"),
        ({"upstream": "http://127.0.0.1:1", "threads": 2}, "threads"),
        ({"upstream": "http://127.0.0.1:1", "image_cache_mb": 2}, "image_cache_mb"),
        ({"engine": "vllm", "vllm": sys.executable, "device": "cpu"}, "device"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(StartError, match=said):
        build_roster(Settings.model_validate(fields), None)


def picture() -> str:
    """A red square as a data URL."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (64, 64), (200, 10, 10)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def ask(url: str, *pictures: str, **fields: object) -> httpx.Response:
    content: list[object] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Describe the screen."}]}]
    body = {"messages": messages, "max_tokens": 8, **fields}
    return httpx.post(url + "/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An executable that says that it stands in for vLLM."""
    program = tmp_path / "vllm"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.engines.upstream_engine.stand_in_vllm "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_vllm_is_run_as_a_child_and_ends_with_the_server(stand_in: Path) -> None:
    flags = ("org/some-model", "--engine", "vllm", "--vllm-args=--tensor-parallel-size 2", "--max-num-seqs", "3")
    with served(*flags, ONSIGHT_VLLM=str(stand_in)) as server:
        answer = ask(server.url, picture()).json()
        assert answer["model"] == "org/some-model"
        assert answer["choices"][0]["message"]["content"] == "Hello you"
        wait_until(lambda: "stand-in for tests" in server.log())
        for told in ("--tensor-parallel-size 2", "--max-num-seqs 3", "--generation-config vllm"):
            assert told in server.log()
        assert "engine vllm: as asked for" in server.log()
        (child,) = psutil.Process(server.process.pid).children()
        assert server.stop() == 0
        assert not child.is_running()


def test_a_killed_child_makes_the_server_unready_until_it_is_back(stand_in: Path) -> None:
    with served("org/some-model", "--engine", "vllm", ONSIGHT_VLLM=str(stand_in)) as server:
        (child,) = psutil.Process(server.process.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: get(server, "/ready").status_code == 503)
        wait_until(lambda: get(server, "/ready").status_code == 200)
        assert ask(server.url).json()["choices"][0]["message"]["content"] == "Hello you"


@pytest.mark.model
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the extra `llama` is not installed")
def test_a_gguf_file_is_served_with_the_mmproj_beside_it_and_without_it_takes_no_pictures(tmp_path: Path) -> None:
    from training.export_gguf import export_gguf
    from training.model import BUNDLED

    model, mmproj = export_gguf(BUNDLED, tmp_path, "peek")
    with served(str(model)) as server:
        answer = ask(server.url, picture())
        assert answer.json()["model"] == "peek"
        assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 64
        assert "engine llama" in server.log()
    mmproj.unlink()
    with served(str(model)) as server:
        assert ask(server.url).status_code == 200
        refused = ask(server.url, picture())
        assert refused.status_code == 400
        assert "reads text only" in refused.json()["error"]["message"]
