"""The Phi-3.5-vision captioning service's document: its curl line, and the same upload as /docs makes it."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.compat.conftest import Bash, Pictures
from tests.servers import Served

pytestmark = pytest.mark.model


def upload(server: Served, data: bytes, field: str = "file", **texts: str) -> httpx.Response:
    return httpx.post(server.url + "/infer", files={field: ("image.jpg", data, "image/jpeg")}, data=texts, timeout=60)


def test_the_curl_line_gets_a_caption(server: Served, bash: Bash) -> None:
    lines = f"""curl -X POST {server.url}/infer \\
  -H "Content-Type: multipart/form-data" \\
  -F "file=@image.jpg"
"""
    answer = json.loads(bash(lines))
    assert list(answer) == ["caption"]
    assert len(answer["caption"]) > 10


def test_it_is_the_models_likeliest_caption_of_at_most_100_tokens(server: Served, pictures: Pictures) -> None:
    picture = (pictures.folder / "image.jpg").read_bytes()
    wanted = httpx.post(
        server.url + "/v1/caption", files={"file": picture}, data={"max_tokens": "100"}, timeout=60
    ).json()
    assert wanted["usage"]["completion_tokens"] <= 100
    for _ in range(2):
        response = upload(server, picture)
        assert (response.status_code, response.json()) == (200, {"caption": wanted["text"]})


def test_the_docs_page_is_told_of_the_upload_and_of_the_json(server: Served) -> None:
    assert httpx.get(server.url + "/docs").status_code == 200
    described = httpx.get(server.url + "/openapi.json").json()
    operation = described["paths"]["/infer"]["post"]
    content = operation["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary"
    assert form["required"] == ["file"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert described["components"]["schemas"][name]["required"] == ["prompt", "image"]
    answers = json.dumps(operation["responses"]["200"])
    assert "Caption" in answers
    assert "InferAnswer" in answers
    assert "InferError" in json.dumps(operation["responses"]["400"])


def test_a_file_that_is_no_picture_is_refused(server: Served) -> None:
    response = upload(server, b"no picture")
    assert (response.status_code, list(response.json())) == (400, ["detail"])
    assert response.json()["detail"].startswith("this is not a picture that can be read")


@pytest.mark.parametrize(
    ("field", "texts", "named"),
    [("image", {}, "`image`"), ("file", {"asset_id": "7"}, "`asset_id`")],
)
def test_a_wrong_field_is_named(
    server: Served, pictures: Pictures, field: str, texts: dict[str, str], named: str
) -> None:
    response = upload(server, (pictures.folder / "image.jpg").read_bytes(), field, **texts)
    assert (response.status_code, list(response.json())) == (400, ["detail"])
    assert named in response.json()["detail"]


def test_a_form_without_a_file_says_that_it_is_missing(server: Served) -> None:
    response = httpx.post(
        server.url + "/infer",
        headers={"content-type": "multipart/form-data; boundary=b"},
        content=b"--b--\r\n",
    )
    assert (response.status_code, response.json()) == (400, {"detail": "`file` is missing"})


def test_a_broken_form_is_refused(server: Served) -> None:
    response = httpx.post(
        server.url + "/infer", headers={"content-type": "multipart/form-data; boundary=b"}, content=b"x"
    )
    assert (response.status_code, list(response.json())) == (400, ["detail"])
