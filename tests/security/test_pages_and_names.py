"""A web page cannot use its reader's browser to reach a server that it may not call."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from onsight.api.keys import KeyBook
from onsight.config import load_settings
from onsight.serve import assemble
from tests.api.conftest import Bench
from tests.servers import served

Build = Callable[..., Bench]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
async def test_the_machines_own_names_are_answered(build: Build, host: str) -> None:
    assert (await build(allowed_hosts=LOOPBACK).get("/v1/models", host=host)).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "", "["]
)
async def test_a_name_that_was_bound_to_this_address_is_refused(build: Build, host: str) -> None:
    answer = await build(allowed_hosts=LOOPBACK).get("/v1/models", host=host)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


async def test_a_foreign_page_may_not_ask_even_if_it_cannot_read(build: Build) -> None:
    bench = build()
    for origin in ("https://evil.example", "null", "http://onsight:81", "http://onsight.evil.example"):
        assert (await bench.get("/v1/models", origin=origin)).status_code == 403, origin
    own = await bench.get("/v1/models", origin="http://onsight")
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


async def test_a_page_that_is_listed_may_ask_and_read(build: Build) -> None:
    bench = build(keys=KeyBook("sesame"), origins=frozenset({"https://app.example"}))
    async with bench.client() as client:
        leave = await client.options(
            "/v1/chat/completions",
            headers={
                "origin": "https://app.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == "https://app.example"
    answer = await bench.get("/v1/models", origin="https://app.example", authorization="Bearer sesame")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert (await bench.get("/v1/models", origin="https://app.example")).status_code == 401
    other = await bench.get("/v1/models", origin="https://evil.example", authorization="Bearer sesame")
    assert other.status_code == 403


@pytest.mark.parametrize(
    ("flags", "host", "status"),
    [
        ({}, "evil.example", 403),
        ({}, "localhost", 200),
        ({"no_auth": True}, "evil.example", 403),
        ({"no_auth": True}, "localhost:8000", 200),
        ({"no_auth": True, "allowed_hosts": "a.example"}, "a.example", 200),
        ({"api_key": "sesame"}, "evil.example", 401),
        ({"host": "0.0.0.0", "no_auth": True}, "evil.example", 200),
        ({"host": "0.0.0.0", "no_auth": True, "allowed_hosts": "a.example"}, "evil.example", 403),
        ({"host": "0.0.0.0", "no_auth": True, "allowed_hosts": "A.example"}, "a.example", 200),
    ],
)
async def test_the_settings_say_which_names_count(flags: dict[str, object], host: str, status: int) -> None:
    site = assemble(load_settings({"engine": "fake", **flags}, environment={}))
    await site.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://x") as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status
    await site.close()


def test_nobody_but_a_trusted_proxy_says_where_a_request_comes_from() -> None:
    limited = ("fake", "--engine", "fake", "--requests-per-min-address", "2")
    with served(*limited) as server, httpx.Client(base_url=server.url) as client:
        codes = [client.get("/v1/models", headers={"x-forwarded-for": f"10.0.0.{n}"}).status_code for n in range(4)]
        assert codes == [200, 200, 429, 429]
    with served(*limited, "--trusted-proxies", "127.0.0.1") as server, httpx.Client(base_url=server.url) as client:
        codes = [client.get("/v1/models", headers={"x-forwarded-for": f"10.0.0.{n}"}).status_code for n in range(4)]
        assert codes == [200, 200, 200, 200]
