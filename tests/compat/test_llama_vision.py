"""The Llama 3.2 Vision service's document: its environment, its curl lines, its Python snippet, its envelope."""

from __future__ import annotations

import base64
import importlib.util
import json
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from onsight.models.hub import BUNDLED
from tests.compat.conftest import Bash, Pictures
from tests.media.pictures import plain
from tests.ollama_gguf import write_ollama, write_plain
from tests.servers import Served, served
from training.export_gguf import export_gguf

pytestmark = pytest.mark.model

NAME = "your-model-name"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started as the document says, by MODEL_PATH, MODEL_NAME and PORT."""
    models = tmp_path_factory.mktemp("models")
    (models / NAME).symlink_to(BUNDLED / "peek")
    environment = {"MODEL_PATH": str(models), "MODEL_NAME": NAME, "PORT": str(free_port()), "N_THREADS": "1"}
    with served(**environment) as running:
        assert running.url.endswith(":" + environment["PORT"])
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def image(pictures: Pictures) -> str:
    return base64.b64encode((pictures.folder / "image.jpg").read_bytes()).decode()


def infer(server: Served, **fields: object) -> httpx.Response:
    return httpx.post(server.url + "/infer", json=fields, timeout=60)


def check_error(response: httpx.Response, status: int, error: str, kind: str = "validation") -> None:
    answer = response.json()
    assert (response.status_code, list(answer)) == (status, ["success", "error", "error_type", "timestamp", "details"])
    assert (answer["success"], answer["error_type"], answer["details"]) == (False, kind, None)
    assert answer["error"].startswith(error)
    datetime.fromisoformat(answer["timestamp"])


def test_the_log_says_what_was_taken_from_where(llama: Served) -> None:
    log = llama.log()
    assert f"{NAME}' is taken from MODEL_PATH with MODEL_NAME" in log
    assert "is taken from PORT" in log
    assert "threads '1' is taken from N_THREADS" in log


def test_the_health_check_by_curl(llama: Served, bash: Bash) -> None:
    health = json.loads(bash(f"curl {llama.url}/health"))
    assert (health["status"], health["model_loaded"], health["model_name"]) == ("healthy", True, NAME)
    datetime.fromisoformat(health["timestamp"])


def test_the_root_says_what_there_is(llama: Served) -> None:
    about = httpx.get(llama.url + "/").json()
    assert about["service"]
    assert about["version"]
    assert about["model"] == NAME
    assert {"/health", "/infer"} <= about["endpoints"].keys()


def test_the_curl_example_gets_every_key_of_the_envelope(llama: Served, bash: Bash) -> None:
    lines = f"""# Encode image to base64
IMAGE_B64=$(base64 -w 0 image.jpg)

# Make request
curl -X POST {llama.url}/infer \\
  -H "Content-Type: application/json" \\
  -d "{{
    \\"prompt\\": \\"Describe this image in detail\\",
    \\"image\\": \\"$IMAGE_B64\\",
    \\"max_tokens\\": 256
  }}"
"""
    answer = json.loads(bash(lines))
    datetime.fromisoformat(answer.pop("timestamp"))
    said, usage = answer.pop("response_text"), answer.pop("token_usage")
    assert answer == {
        "success": True,
        "model": NAME,
        "metadata": {"max_tokens": 256, "temperature": 0.7, "top_p": 0.95},
        "error": None,
    }
    assert said
    assert list(usage) == ["prompt_tokens", "completion_tokens", "total_tokens"]
    assert usage["prompt_tokens"] > 50
    assert 1 <= usage["completion_tokens"] <= 256
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_python_example(llama: Served, pictures: Pictures) -> None:
    response = infer(
        llama,
        prompt="What objects can you see in this image?",
        image=image(pictures),
        max_tokens=300,
        temperature=0.7,
    )
    result = response.json()
    assert response.status_code == 200
    assert result["response_text"]
    assert result["metadata"] == {"max_tokens": 300, "temperature": 0.7, "top_p": 0.95}


def test_the_model_sees_the_picture_in_either_form(server: Served, pictures: Pictures) -> None:
    question = {"prompt": "Describe the screen.", "temperature": 0, "max_tokens": 64}
    bare = infer(server, image=image(pictures), **question).json()
    url = infer(server, image=f"data:image/jpeg;base64,{image(pictures)}", **question).json()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image(pictures)}"}}
    content = [part, {"type": "text", "text": "Describe the screen."}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 64}
    chat = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()
    assert bare["response_text"] == url["response_text"] == chat["choices"][0]["message"]["content"]
    other = infer(server, image=base64.b64encode(plain("JPEG", (256, 256))).decode(), **question).json()
    assert other["response_text"] != bare["response_text"]


def test_the_documents_own_test_request_is_told_that_its_image_is_none(llama: Served, bash: Bash) -> None:
    lines = f"""curl -X POST {llama.url}/infer \\
  -H "Content-Type: application/json" \\
  -d '{{"prompt": "test", "image": "..."}}'
"""
    answer = json.loads(bash(lines))
    assert (answer["success"], answer["error_type"]) == (False, "validation")
    assert answer["error"].startswith("Invalid image data: ")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image": "aGk="}, "Missing required field: prompt"),
        ({"prompt": "", "image": "aGk="}, "Missing required field: prompt"),
        ({"prompt": None, "image": "aGk="}, "Missing required field: prompt"),
        ({}, "Missing required field: prompt"),
        ({"prompt": "what?"}, "Missing required field: image"),
        ({"prompt": "what?", "image": ""}, "Missing required field: image"),
        ({"prompt": "what?", "image": "bm8gcGljdHVyZQ=="}, "Invalid image data: "),
        ({"prompt": "what?", "image": "http://127.0.0.1/image.jpg"}, "Invalid image data: "),
        ({"prompt": "what?", "image": "aGk=", "max_tokens": 0}, "`max_tokens`"),
        ({"prompt": "what?", "image": "aGk=", "temperature": "hot"}, "`temperature`"),
        ({"prompt": "what?", "image": "aGk=", "top_p": 2}, "`top_p`"),
        ({"prompt": "what?", "image": "aGk=", "stream": True}, "unknown field `stream`"),
    ],
)
def test_a_wrong_request_is_told_so_in_the_services_own_words(
    llama: Served, fields: dict[str, object], error: str
) -> None:
    check_error(infer(llama, **fields), 400, error)


@pytest.mark.parametrize(
    ("content", "kind", "status", "error"),
    [
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"[]", "application/json", 400, "the body is a JSON array"),
        (b"prompt=what", "application/x-www-form-urlencoded", 415, "the content type is"),
    ],
)
def test_a_body_that_is_no_json_is_refused(llama: Served, content: bytes, kind: str, status: int, error: str) -> None:
    response = httpx.post(llama.url + "/infer", content=content, headers={"content-type": kind})
    check_error(response, status, error)


def test_another_method_is_refused_in_the_same_envelope(llama: Served) -> None:
    response = httpx.get(llama.url + "/infer")
    check_error(response, 405, "/infer does not answer to GET")
    assert response.headers["allow"] == "POST"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the extra `llama` is not installed")
def test_a_gguf_file_is_served_on_the_cpu_by_llama_cpp(tmp_path: Path, bash: Bash, pictures: Pictures) -> None:
    model, _ = export_gguf(BUNDLED / "peek", tmp_path, "peek")
    environment = {"MODEL_PATH": str(tmp_path), "MODEL_NAME": model.name, "PORT": str(free_port()), "N_THREADS": "1"}
    with served(**environment) as server:
        assert "engine llama" in server.log()
        health = json.loads(bash(f"curl {server.url}/health"))
        assert (health["model_loaded"], health["model_name"]) == (True, model.name)
        question = {"prompt": "Describe the screen.", "temperature": 0, "max_tokens": 64}
        answer = infer(server, image=image(pictures), **question).json()
        assert (answer["success"], answer["model"]) == (True, model.name)
        assert answer["response_text"].strip().startswith("A ")
        assert answer["token_usage"]["completion_tokens"] > 5


def test_an_ollama_file_of_the_model_itself_is_served_on_the_cpu_in_4_bits(
    tmp_path: Path, bash: Bash, pictures: Pictures
) -> None:
    """The one that the document names, small and random."""
    name = "llama-3.2-11b-vision-instruct-q4_k_m.gguf"
    write_ollama(write_plain(tmp_path / "plain"), tmp_path / name)
    environment = {"MODEL_PATH": str(tmp_path), "PORT": str(free_port()), "N_THREADS": "1", "ONSIGHT_QUANTIZE": "int4"}
    environment["HF_HOME"] = str(tmp_path / "cache")
    with served(**environment) as server:
        assert "engine torch" in server.log()
        assert "int4" in server.log()
        assert json.loads(bash(f"curl {server.url}/health"))["model_name"] == name
        asked = {"prompt": "What is this?", "image": image(pictures), "temperature": 0, "max_tokens": 6}
        first, second = (infer(server, **asked).json() for _ in range(2))
        assert first["success"] is True
        assert 1 <= first["token_usage"]["completion_tokens"] <= 6
        assert first["response_text"] == second["response_text"]


def test_names_that_contradict_each_other_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ended with 2.*PORT gives '1' and APP_PORT gives '2'"):
        with served(PORT="1", APP_PORT="2"):
            pass
