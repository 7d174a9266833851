"""Which engine runs what, what is refused, and each of the others behind `onsight serve`."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image as Pillow

from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.engine_choice import build_roster, choose_kind, with_room
from onsight.engines.upstream_engine import Child, ChildCommand, Patience
from onsight.models.hub import ADAPTER_CONFIG, BUNDLED, QUANT_METHOD
from onsight.serve import assemble
from tests.engines.contract import ask as asked
from tests.engines.contract import text_of
from tests.engines.upstream_engine.scripted import scripted
from tests.models.test_gguf import write, write_mmproj
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
    assert chosen(device="cuda", vllm="/opt/vllm") == "vllm"  # Peek
    assert chosen(engine="fake") == "fake"


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "vllm"),
        ({"architectures": ["MllamaForConditionalGeneration"]}, "torch"),
        (
            {
                "architectures": ["Qwen2_5_VLForConditionalGeneration"],
                "quantization_config": {"quant_method": QUANT_METHOD},
            },
            "torch",
        ),
    ],
)
def test_a_folders_own_configuration_says_which_family_it_is(
    tmp_path: Path, config: dict[str, object], engine: str
) -> None:
    """As a fine-tune has it, whose name tells nothing."""
    folder = tmp_path / "my-finetune"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert chosen(model=str(folder), device="cuda", vllm="/opt/vllm") == engine
    assert chosen(model=str(folder), device="cuda") == "torch"
    (folder / ADAPTER_CONFIG).touch()
    assert chosen(model=str(folder), device="cuda", vllm="/opt/vllm") == "torch"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "a.gguf", "engine": "torch"}, "only the engine llama"),
        ({"engine": "llama"}, "no GGUF file"),
        ({"engine": "upstream"}, "--upstream URL"),
        ({"engine": "vllm"}, "ONSIGHT_VLLM"),
        ({"engine": "vllm", "vllm": sys.executable, "vllm_args": "--x '"}, "vllm_args"),
        ({"engine": "vllm", "vllm": sys.executable, "vllm_args": "--api-key secret"}, "hold --api-key"),
        ({"engine": "vllm", "vllm": sys.executable, "vllm_args": "--api_key=secret"}, "hold --api-key"),
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


@pytest.mark.parametrize("fields", [{"upstream": "http://127.0.0.1:1"}, {"engine": "vllm", "vllm": sys.executable}])
def test_a_server_that_batches_by_itself_gets_as_many_requests_as_it_takes(fields: dict[str, object]) -> None:
    site = assemble(Settings.model_validate(fields))
    site.door.close()
    assert site.admission.places == 512
    assert with_room(Settings.model_validate(fields)).max_num_seqs == 256
    set_by_hand = Settings.model_validate({**fields, "max_num_seqs": 8, "max_queue": 64})
    assert with_room(set_by_hand) == set_by_hand


def test_room_for_our_own_engines_is_as_the_settings_say() -> None:
    assert with_room(Settings()).max_queue == 64
    assert with_room(Settings(model="a.gguf")).max_num_seqs == 8


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


def test_a_child_is_ended_after_the_stall_timeout_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Patience] = []

    def child(command: ChildCommand, patience: Patience) -> Child:
        given.append(patience)
        return Child(command, patience)

    monkeypatch.setattr("onsight.engine_choice.Child", child)
    build_roster(Settings(engine="vllm", vllm=sys.executable, stall_timeout_s=7), None)
    assert [patience.stall_s for patience in given] == [7]


def executable(path: Path, module: str) -> Path:
    """A program at `path` that runs a stand-in."""
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.engines.upstream_engine.{module} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An executable that says that it stands in for vLLM."""
    return executable(tmp_path / "vllm", "stand_in_vllm")


def test_vllm_is_run_as_a_child_and_ends_with_the_server(stand_in: Path) -> None:
    flags = ("org/some-model", "--engine", "vllm", "--vllm-args=--tensor-parallel-size 2", "--max-num-seqs", "3")
    flags += ("--max-model-len", "2048")  # it says 4096, which may be so of one that was told
    with served(*flags, ONSIGHT_VLLM=str(stand_in)) as server:
        answer = ask(server.url, picture()).json()
        assert answer["model"] == "org/some-model"
        assert answer["choices"][0]["message"]["content"] == "Hello you"
        wait_until(lambda: "stand-in for tests" in server.log())
        for told in (
            "--tensor-parallel-size 2",
            "--max-num-seqs 3",
            "--max-model-len 2048",
            "--generation-config vllm",
        ):
            assert told in server.log()
        assert "engine vllm: as asked for" in server.log()
        (child,) = psutil.Process(server.process.pid).children()
        assert server.stop() == 0
        assert not child.is_running()


def test_vllm_is_given_the_folder_of_what_is_bundled_under_its_name(stand_in: Path) -> None:
    with served("--engine", "vllm", ONSIGHT_VLLM=str(stand_in)) as server:
        assert ask(server.url).json()["model"] == "peek"
        (child,) = psutil.Process(server.process.pid).children()
        words = child.cmdline()
        assert words[words.index("serve") + 1] == str(BUNDLED / "peek")
        assert words[words.index("--served-model-name") + 1] == "peek"


def test_a_killed_child_makes_the_server_unready_until_it_is_back(stand_in: Path) -> None:
    key = {"VLLM_API_KEY": "somebody's own"}  # it would be vLLM's, and we would not be let in
    with served("org/some-model", "--engine", "vllm", ONSIGHT_VLLM=str(stand_in), **key) as server:
        (child,) = psutil.Process(server.process.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: get(server, "/ready").status_code == 503)
        assert ask(server.url).json()["choices"][0]["message"]["content"] == "Hello you"
        wait_until(lambda: get(server, "/ready").status_code == 200)
        assert "--max-num-seqs" not in server.log()
        assert ask(server.url).json()["choices"][0]["message"]["content"] == "Hello you"


def test_ones_own_llama_server_is_run_as_a_child_with_our_options(tmp_path: Path) -> None:
    model = write(tmp_path / "own.gguf", "llama")
    mmproj = write_mmproj(tmp_path / "mmproj-own.gguf", "mlp", 8)
    program = executable(tmp_path / "llama-server", "stand_in_llama")
    few = ("--max-num-seqs", "3", "--threads", "2")
    with served(str(model), "--llama-server", str(program), "--max-model-len", "32", *few) as server:
        answer = ask(server.url, picture()).json()
        assert answer["model"] == "own"
        assert answer["choices"][0]["message"]["content"] == "Hello you"
        wait_until(lambda: "stand-in for tests" in server.log())
        for told in (f"--model {model}", f"--mmproj {mmproj}", f"--ctx-size {3 * 32}", "--parallel 3", "--threads 2"):
            assert told in server.log()
        (child,) = psutil.Process(server.process.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        assert ask(server.url).json()["choices"][0]["message"]["content"] == "Hello you"
        assert server.stop() == 0


async def test_ones_own_llama_server_need_not_say_its_context(tmp_path: Path) -> None:
    """Older builds tell nothing of it in /v1/models, and it was told by us."""
    model = write(tmp_path / "own.gguf", "llama", context_length=48)
    program = executable(tmp_path / "llama-server", "stand_in_llama")
    engine = build_roster(Settings(model=str(model), llama_server=str(program)), None).chats[0].engine
    await engine.start()
    assert engine.context_tokens == 48
    await engine.close()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("option", ["upstream", "llama_server"])
async def test_a_running_servers_url_may_end_as_openais_clients_write_it(
    tmp_path: Path, option: str, ending: str
) -> None:
    named = {"model": str(write(tmp_path / "own.gguf", "llama"))} if option == "llama_server" else {}
    async with scripted("llamacpp") as server:
        settings = Settings.model_validate({**named, option: server.url + ending})
        engine = build_roster(settings, None).chats[0].engine
        async with asyncio.timeout(20):
            await engine.start()
        assert await text_of(engine, asked("hi")) == "Hello you"
        await engine.close()


def made(folder: Path, *, touched: str) -> str:
    """What `make serve ENGINE=llama` would run, where Peek's GGUF is there and `touched` was changed after it."""
    gguf = folder / "onsight/gguf/peek.gguf"
    gguf.parent.mkdir(parents=True, exist_ok=True)
    gguf.touch()
    command = ["make", "-n", "-W", touched, "-o", "install", "serve", "ENGINE=llama", f"XDG_CACHE_HOME={folder}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_peeks_gguf_is_written_anew_when_peek_changes(tmp_path: Path) -> None:
    assert "export_gguf" not in made(tmp_path, touched="README.md")
    assert "export_gguf" in made(tmp_path, touched="src/onsight/bundled/peek/model.safetensors")


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
