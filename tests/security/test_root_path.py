"""Under a root path (`uvicorn --root-path`), each rule looks at the path that the routes see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from onsight.api.keys import KeyBook, Scope, new_key, write_keys
from onsight.core.errors import InvalidRequest
from tests.api.conftest import Bench

Build = Callable[..., Bench]
ROOT = "/onsight"


def under_root(bench: Bench) -> httpx.AsyncClient:
    """A client whose requests come as uvicorn hands them on: the prefix stands in their path, and apart."""
    transport = httpx.ASGITransport(bench.app, root_path=ROOT)
    return httpx.AsyncClient(transport=transport, base_url=f"http://onsight{ROOT}", headers=bench.headers)


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("embed", "POST", "/v1/chat/completions", 403),
        ("embed", "POST", "/infer", 403),
        ("embed", "GET", "/metrics", 403),
        ("chat", "GET", "/metrics", 403),
        ("chat", "POST", "/v1/rerank", 403),
        ("chat", "GET", "/v1/models", 200),
        ("chat", "GET", "/", 200),
        ("chat", "GET", "/nowhere", 404),
        ("admin", "GET", "/metrics", 200),
    ],
)
async def test_a_key_opens_no_more(
    scope: Scope, method: str, path: str, status: int, build: Build, tmp_path: Path
) -> None:
    text, key = new_key("robin", (scope,))
    write_keys(tmp_path / "keys.json", (key,))
    bench = build(keys=KeyBook(file=tmp_path / "keys.json"))
    bench.headers = {"authorization": f"Bearer {text}"}
    async with under_root(bench) as client:
        assert (await client.request(method, path)).status_code == status
        # A program that takes the prefix away before it tells of it.
        assert (await client.request(method, f"http://onsight{path}")).status_code == status


async def test_without_a_key_the_same_paths_are_open(build: Build) -> None:
    async with under_root(build(keys=KeyBook("sesame"), open_metrics=True)) as client:
        for path in ("/health", "/ready", "/docs", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/", "/v1/models", "/openapi.json", "/health/x", "/ui", f"{ROOT}/health", f"http://onsight{ROOT}"):
            assert (await client.get(path)).status_code == 401, path
        led = await client.get("/", headers={"accept": "text/html"})
        assert (led.status_code, led.headers["location"]) == (307, "docs")


async def test_probes_are_not_counted_and_all_else_is(build: Build) -> None:
    async with under_root(build(a_minute_by_address=1)) as client:
        assert [(await client.get("/health")).status_code for _ in range(3)] == [200] * 3
        assert [(await client.get("/v1/models")).status_code for _ in range(2)] == [200, 429]


async def test_errors_look_as_the_paths_clients_expect(build: Build) -> None:
    async with under_root(build(keys=KeyBook("sesame"))) as client:
        assert (await client.post("/infer", json={})).json()["error_type"] == "system"
        assert "needs a key" in (await client.post("/embed/queries", json={})).json()["detail"]


async def test_the_page_looks_after_itself(build: Build) -> None:
    async def page(scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/infer"):
            raise InvalidRequest("not so")
        await PlainTextResponse("the page")(scope, receive, send)

    async with under_root(build(keys=KeyBook("sesame"), page=page)) as client:
        assert (await client.get("/ui/")).text == "the page"
        assert (await client.get("/ui")).headers["location"] == f"{ROOT}/ui/"
        assert (await client.get("/uiv")).status_code == 401
        # Its mount changes what is told of the prefix, which must not make another route's error of its own.
        assert (await client.get("/ui/infer")).json()["error"]["message"] == "not so"
