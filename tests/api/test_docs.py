"""/docs and /openapi.json: complete, and alone in the world."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

from onsight.api.keys import KeyBook
from tests.api.conftest import Bench


async def test_the_page_names_no_address_outside_this_server(bench: Bench) -> None:
    page = (await bench.get("/docs")).text
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", page.lower())
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", page)
    assert "@import" not in page
    assert "innerHTML" not in page


async def test_the_pages_policy_lets_only_its_own_script_run(bench: Bench) -> None:
    response = await bench.get("/docs")
    policy = response.headers["content-security-policy"]
    scripts = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "connect-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r'\s(style|on[a-z]+)="', response.text)


async def test_the_page_is_there_with_a_key_and_holds_nothing_of_the_server(build: Callable[..., Bench]) -> None:
    bench = build(keys=KeyBook("sesame"))
    response = await bench.get("/docs")
    assert response.status_code == 200
    assert "fake" not in response.text
    assert "sesame" not in response.text


async def test_fastapis_own_pages_are_gone(bench: Bench) -> None:
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert (await bench.get(path)).status_code == 404


async def test_the_description_knows_every_route_and_every_reference_resolves(bench: Bench) -> None:
    described = (await bench.get("/openapi.json")).json()
    assert set(described["paths"]) == {
        "/",
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/caption",
        "/v1/ocr",
        "/v1/locate",
        "/v1/describe",
        "/infer",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/info",
        "/patches",
        "/embed/queries",
        "/embed/images",
    }
    text = (await bench.get("/openapi.json")).text
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names <= set(described["components"]["schemas"])
    assert "HTTPValidationError" not in text


async def test_the_description_of_a_chat_body_tells_what_is_honoured_and_what_changes_nothing(bench: Bench) -> None:
    described = (await bench.get("/openapi.json")).json()
    schemas = described["components"]["schemas"]
    fields = schemas["ChatRequest"]["properties"]
    assert {"messages", "stream", "seed", "stop", "top_k", "response_format", "logprobs"} <= set(fields)
    assert fields["user"]["description"].startswith("Changes nothing")
    assert fields["functions"]["description"].startswith("Not offered")
    assert schemas["ChatRequest"]["additionalProperties"] is False
    operation = described["paths"]["/v1/chat/completions"]["post"]
    assert set(operation["responses"]) == {
        *("200", "400", "401", "403", "404", "408", "413", "415", "429", "500", "503", "504")
    }
    for status, answer in operation["responses"].items():
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer") == (status != "200")
        assert ("retry-after" in answer.get("headers", {})) == (status in ("429", "503"))
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_a_task_is_described_as_json_and_as_a_form(bench: Bench) -> None:
    described = (await bench.get("/openapi.json")).json()
    content = described["paths"]["/v1/locate"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    assert content["application/json"]["schema"]["$ref"].endswith("LocateRequest")
    assert form["properties"]["file"] == {"type": "string", "format": "binary"}
    assert set(form["required"]) == {"file", "target"}
    assert "image" not in form["properties"]
