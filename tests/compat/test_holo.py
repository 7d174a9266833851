"""The Holo1.5 service's document: its curl lines and Python snippets, run against our server."""

from __future__ import annotations

import base64
import json
import re

import httpx
import openai
import pytest

from tests.compat.conftest import HOLO, Bash, Pictures
from tests.servers import Served

pytestmark = pytest.mark.model

SENTENCE = "Describe this image in one sentence."


def ask(server: Served, *parts: object, **fields: object) -> httpx.Response:
    body = {"model": HOLO, "messages": [{"role": "user", "content": list(parts)}], **fields}
    return httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)


def text(words: str = SENTENCE) -> dict[str, object]:
    return {"type": "text", "text": words}


def check_completion(answer: dict[str, object]) -> None:
    """Every key of the document's response."""
    assert re.fullmatch(r"chatcmpl-\w+", str(answer["id"]))
    assert (answer["object"], answer["model"]) == ("chat.completion", HOLO)
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 50
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_health_check_by_curl(server: Served, bash: Bash) -> None:
    health = json.loads(bash(f"curl {server.url}/health"))
    assert (health["status"], health["model_loaded"], health["processor_loaded"]) == ("healthy", True, True)
    assert health["device"] == "cpu"


def test_the_root_by_curl(server: Served, bash: Bash) -> None:
    about = json.loads(bash(f"curl {server.url}/"))
    assert (about["status"], about["api_version"]) == ("running", "OpenAI Compatible")
    assert (about["model"], about["device"]) == (HOLO, "cpu")


def test_the_models_are_listed_in_openais_form(server: Served) -> None:
    listed = httpx.get(server.url + "/v1/models").json()
    assert listed["object"] == "list"
    assert {"id": HOLO, "object": "model"}.items() <= listed["data"][0].items()


def test_the_basic_example_by_curl_with_a_pictures_url(server: Served, pictures: Pictures, bash: Bash) -> None:
    lines = f"""curl -X POST "{server.url}/v1/chat/completions" \\
  -H "Content-Type: application/json" \\
  -d '{{
    "model": "Hcompany/Holo1.5-7B",
    "messages": [
      {{
        "role": "user",
        "content": [
          {{
            "type": "text",
            "text": "Describe this image in one sentence."
          }},
          {{
            "type": "image_url",
            "image_url": {{
              "url": "{pictures.url}/image.jpg"
            }}
          }}
        ]
      }}
    ]
  }}'
"""
    check_completion(json.loads(bash(lines)))


def test_the_raw_request_in_python(server: Served, pictures: Pictures) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"{pictures.url}/screenshot.png"}}
    response = ask(server, text("Where is the search button?"), picture, max_tokens=512)
    assert response.status_code == 200
    check_completion(response.json())


def test_the_openai_sdk_without_a_real_key(server: Served, pictures: Pictures) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed")
    picture = {"type": "image_url", "image_url": {"url": f"{pictures.url}/image.jpg"}}
    response = client.chat.completions.create(
        model=HOLO, messages=[{"role": "user", "content": [text("What do you see in this image?"), picture]}]
    )
    assert response.choices[0].message.content


def test_every_form_of_a_picture_is_the_same_picture(server: Served, pictures: Pictures) -> None:
    b64 = base64.b64encode((pictures.folder / "screenshot.png").read_bytes()).decode()
    url = f"data:image/png;base64,{b64}"
    forms: tuple[dict[str, object], ...] = (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": f"{pictures.url}/screenshot.png"},
        {"type": "image", "image": {"b64": b64}},
        {"type": "image", "image": {"b64": url}},
    )
    answers = [ask(server, text("Describe the screen."), form, temperature=0).json() for form in forms]
    said = {(answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]) for answer in answers}
    assert len(said) == 1


def test_a_request_that_names_nothing_but_its_messages_is_answered(server: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()
    assert answer["model"] == HOLO
    assert answer["usage"]["completion_tokens"] <= 512


@pytest.mark.parametrize(
    ("part", "status", "param"),
    [
        ({"type": "image_url"}, 400, "messages.0.content.1.image_url"),
        ({"type": "image_url", "image_url": ""}, 400, "messages.0.content.1.image_url.url"),
        ({"type": "image", "image": {}}, 400, "messages.0.content.1.image.b64"),
        ({"type": "image", "image": {"b64": "bm8gcGljdHVyZQ=="}}, 400, "messages.0.content.1.image"),
        ({"type": "image", "image": {"b64": "***"}}, 400, "messages.0.content.1.image"),
        ({"type": "picture"}, 400, "messages.0.content.1.type"),
    ],
)
def test_a_part_that_holds_no_picture_is_refused_by_its_place(
    server: Served, part: dict[str, object], status: int, param: str
) -> None:
    response = ask(server, text(), part)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_model_of_another_name_is_said_to_be_missing(server: Served) -> None:
    body = {"model": "Hcompany/Holo2", "messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(server.url + "/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
