"""A web page cannot use its reader's browser to reach a server that it may not call."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from starlette.types import Message

from onsight.api.keys import KeyBook
from onsight.api.rates import Rate
from onsight.config import load_settings
from onsight.core import errors
from onsight.serve import assemble
from tests.api.conftest import Bench
from tests.api.test_boundary import Raising
from tests.servers import served

Build = Callable[..., Bench]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LISTED = "https://app.example"
FOREIGN = "https://evil.example"
ASKING = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


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


@pytest.mark.parametrize("origin", ["http://[", "http://]", "http://[::1", "http://a[b]c", "[", "//", "é"])
async def test_an_origin_that_is_no_address_is_foreign(build: Build, origin: str) -> None:
    async with build().client() as client:
        answer = await client.get("/v1/models", headers={"origin": origin.encode()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


async def test_an_origin_without_a_name_is_not_that_of_a_request_without_one(build: Build) -> None:
    assert (await build().get("/v1/models", host="", origin="null")).status_code == 403


@pytest.mark.parametrize(
    ("status", "settings", "asked"),
    [
        (401, {"keys": KeyBook("sesame")}, 1),
        (413, {"max_body_bytes": 10}, 1),
        (429, {"a_minute_by_address": 1}, 2),
        (429, {"keys": KeyBook("open"), "rate_by_key": Rate("key", 1)}, 2),
        (503, {"engine": Raising(errors.Unavailable("x", retry_after_s=3))}, 1),
        (500, {"engine": Raising(ValueError("x"))}, 1),
    ],
)
async def test_a_listed_page_reads_refusals_and_another_one_none(
    build: Build, status: int, settings: dict[str, object], asked: int
) -> None:
    bench = build(origins=frozenset({LISTED}), **settings)
    bench.headers = {"origin": LISTED, "authorization": "Bearer open"}
    answer = [await bench.chat() for _ in range(asked)][-1]
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
    assert ("retry-after" in answer.headers, "x-request-id" in answer.headers) == (status in (429, 503), True)
    bench.headers["origin"] = FOREIGN
    other = await bench.chat()
    assert (other.status_code, "access-control-allow-origin" in other.headers) == (403, False)


async def test_where_every_page_is_listed_every_page_reads_refusals(build: Build) -> None:
    answer = await build(keys=KeyBook("sesame"), origins=frozenset({"*"})).get("/v1/models", origin=FOREIGN)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "*")


async def test_asking_for_leave_needs_no_key_but_a_name_of_ours_and_is_counted(build: Build) -> None:
    bench = build(
        keys=KeyBook("sesame"), origins=frozenset({LISTED}), allowed_hosts=frozenset({"onsight"}), a_minute_by_address=2
    )
    async with bench.client() as client:

        async def ask(origin: str = LISTED, host: str = "onsight") -> httpx.Response:
            return await client.options("/v1/chat/completions", headers={**ASKING, "origin": origin, "host": host})

        assert (await ask(host="evil.example")).status_code == 403
        foreign = await ask(FOREIGN)
        assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (403, False)
        leave = [await ask() for _ in range(3)]
    assert [answer.status_code for answer in leave] == [200, 200, 429]
    assert [answer.headers["access-control-allow-origin"] for answer in leave] == [LISTED] * 3
    assert all("x-request-id" in answer.headers for answer in leave)


async def knock(bench: Bench, server: str = "127.0.0.1", **headers: str) -> list[Message]:
    """What the application says to a WebSocket that wants to be opened."""
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        told.append(message)

    await bench.app(
        {
            "type": "websocket",
            "path": "/v1/models",
            "server": (server, 80),
            "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        },
        receive,
        send,
    )
    return told


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, {"origin": FOREIGN}),
        ({}, {"origin": "http://["}),
        ({"allowed_hosts": LOOPBACK}, {"host": "evil.example"}),
        ({"keys": KeyBook("sesame")}, {"authorization": "Bearer guess"}),
        ({"loopback_only": True}, {"server": "10.0.0.7"}),
    ],
)
async def test_a_websocket_is_refused_by_closing_it(
    build: Build, settings: dict[str, object], headers: dict[str, str]
) -> None:
    assert await knock(build(**settings), **headers) == [{"type": "websocket.close", "code": 1008}]


async def test_guesses_by_websocket_are_counted(build: Build) -> None:
    bench = build(keys=KeyBook("sesame"), a_minute_by_address=1)
    await knock(bench, authorization="Bearer guess")
    assert (await bench.get("/v1/models")).status_code == 429


async def test_a_page_that_is_listed_may_ask_and_read(build: Build) -> None:
    bench = build(keys=KeyBook("sesame"), origins=frozenset({LISTED}))
    async with bench.client() as client:
        leave = await client.options("/v1/chat/completions", headers={**ASKING, "origin": LISTED})
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == LISTED
    answer = await bench.get("/v1/models", origin=LISTED, authorization="Bearer sesame")
    assert answer.headers["access-control-allow-origin"] == LISTED
    other = await bench.get("/v1/models", origin=FOREIGN, authorization="Bearer sesame")
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
