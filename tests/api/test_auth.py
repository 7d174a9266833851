"""With a key, nothing answers without it but what is listed."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from starlette.routing import Route

from onsight.api.compat import colqwen
from onsight.api.keys import KeyBook
from tests.api.conftest import Bench, dialled, hello, request_head

KEY = "sesame-sesame"
OPEN = {"/health", "/ready", "/docs"}


def _paths(bench: Bench) -> list[tuple[str, str]]:
    """Every (method, path) that the application knows, and some that it does not."""
    known = [
        (method, route.path.replace("{model:path}", "fake"))
        for route in bench.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    ]
    assert len(known) >= 10
    return [*known, ("GET", "/nowhere"), ("GET", "/docs/../metrics"), ("POST", "/health/x"), ("GET", "//health/")]


async def test_every_route_but_the_open_ones_needs_the_key(build: Callable[..., Bench]) -> None:
    bench = build(keys=KeyBook(KEY))
    async with bench.client() as client:
        for method, path in _paths(bench):
            response = await client.request(method, path)
            if path in OPEN:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                if path == "/infer":
                    assert response.json()["error_type"] == "system"
                elif path in colqwen.PATHS:
                    assert "needs a key" in response.json()["detail"]
                elif method != "HEAD":
                    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY} "}, {"x-api-key": KEY}],
)
async def test_the_key_opens_every_route(build: Callable[..., Bench], headers: dict[str, str]) -> None:
    bench = build(keys=KeyBook(KEY))
    bench.headers = headers
    async with bench.client() as client:
        for method, path in _paths(bench):
            assert (await client.request(method, path)).status_code != 401
    assert (await bench.chat()).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": "Bearer ", "x-api-key": "no"},
        {"x-api-key": ""},
        {"x-api-key": "é".encode()},
    ],
)
async def test_a_wrong_key_opens_nothing(build: Callable[..., Bench], headers: dict[str, str]) -> None:
    bench = build(keys=KeyBook(KEY))
    async with bench.client() as client:
        response = await client.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert KEY not in response.text


async def test_docs_and_metrics_are_open_when_the_settings_say_so(build: Callable[..., Bench]) -> None:
    bench = build(keys=KeyBook(KEY), open_docs=True, open_metrics=True)
    assert (await bench.get("/openapi.json")).status_code == 200
    assert (await bench.get("/metrics")).status_code == 200
    assert (await bench.get("/v1/models")).status_code == 401


async def test_a_browser_at_the_root_is_led_on_and_learns_nothing(build: Callable[..., Bench]) -> None:
    bench = build(keys=KeyBook(KEY))
    html = "text/html,application/xhtml+xml,*/*;q=0.8"
    led = await bench.get("/", accept=html)
    assert (led.status_code, led.headers["location"], led.content) == (307, "docs", b"")
    assert (await bench.get("/v1/models", accept=html)).status_code == 401
    async with bench.client() as client:
        assert (await client.post("/", headers={"accept": html})).status_code == 401
        assert (await client.get("/")).status_code == 401


async def test_a_request_without_a_key_is_refused_before_its_body_has_come(build: Callable[..., Bench]) -> None:
    async with build(keys=KeyBook(KEY)).served() as url, dialled(url, request_head(5_000_000)) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")


async def test_without_a_key_setting_none_is_asked_for(bench: Bench) -> None:
    assert (await bench.chat(messages=hello())).status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.9.9.9:8000", 200),
        ("[::1]:8000", 200),
        ("[::ffff:127.0.0.1]:8000", 200),
        ("10.0.0.7:8000", 401),
        ("[::ffff:10.0.0.7]:8000", 401),
        ("onsight:8000", 401),
    ],
)
async def test_without_a_key_only_a_loopback_address_answers(
    build: Callable[..., Bench], address: str, status: int
) -> None:
    bench = build(loopback_only=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(bench.app), base_url=f"http://{address}") as client:
        response = await client.get("/v1/models")
    assert response.status_code == status
    if status == 401:
        assert "ONSIGHT_API_KEY" in response.json()["error"]["message"]
