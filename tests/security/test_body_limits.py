"""Bodies: how large, how slow, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from onsight.api.body_limits import BodyLimits, _Body
from onsight.api.keys import KeyBook, new_key, write_keys
from onsight.core.errors import Overloaded
from onsight.engines.fake_engine import FakeScript
from tests.api.conftest import Bench, dialled, hello, request_head, until

ROUTE = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


async def test_a_body_announced_as_too_large_is_413_before_it_comes(build: Callable[..., Bench]) -> None:
    async with build(max_body_bytes=1000).served() as url, dialled(url, request_head(1001)) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")


async def test_a_client_in_the_middle_of_sending_50_mb_still_gets_to_read_its_413(build: Callable[..., Bench]) -> None:
    async with build(max_body_bytes=1 << 20).served() as url, httpx.AsyncClient() as client:
        response = await client.post(url + ROUTE, content=bytes(50 << 20), headers=JSON)
    assert response.status_code == 413
    assert "the limit is 1048576" in response.json()["error"]["message"]


async def test_a_body_without_a_length_is_cut_at_the_limit(build: Callable[..., Bench]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield bytes(1 << 16)

    async with build(max_body_bytes=1 << 20).client() as client:
        response = await client.post(ROUTE, content=pieces(), headers=JSON)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


async def test_a_body_as_large_as_the_limit_is_read(build: Callable[..., Bench]) -> None:
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'
    async with build(max_body_bytes=1 << 20).client() as client:
        response = await client.post(ROUTE, content=body.ljust(1 << 20), headers=JSON)
    assert response.status_code == 200


async def test_a_body_that_stops_coming_is_408(build: Callable[..., Bench]) -> None:
    bench = build(body_timeout_s=0.05)
    async with bench.served() as url, dialled(url, request_head(100, b"{")) as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert b"too slowly, 1 bytes" in await reader.readline()


@pytest.mark.parametrize("trickles", [False, True])
async def test_a_body_of_which_much_came_at_once_may_stall_for_no_longer_than_another(
    build: Callable[..., Bench], trickles: bool
) -> None:
    bench = build(max_body_bytes=16 << 20, body_timeout_s=0.3)  # at the least rate it would have two minutes
    nearly = request_head(16 << 20, b"{".ljust((16 << 20) - 1000))
    async with bench.served() as url, dialled(url, nearly) as (reader, writer):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        while not answer.done():
            await asyncio.sleep(0.05)
            if trickles and not answer.done():
                writer.write(b" ")
        assert answer.result().startswith(b"HTTP/1.1 408")


async def test_a_body_that_comes_slowly_and_steadily_is_read(build: Callable[..., Bench]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]'
        for _ in range(8):
            await asyncio.sleep(0.25)
            yield b" " * (128 << 10)
        yield b"}"

    async with build(body_timeout_s=1).served() as url, httpx.AsyncClient() as client:
        response = await client.post(url + ROUTE, content=pieces(), headers=JSON)
    assert response.status_code == 200, response.text


async def test_a_slow_answer_is_not_taken_for_a_slow_body(build: Callable[..., Bench]) -> None:
    assert (await build(FakeScript(step_s=0.02), body_timeout_s=0.05).chat()).status_code == 200


async def test_many_large_bodies_at_once_are_refused_past_the_total(
    build: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    hold = BodyLimits.hold

    def noted(limits: BodyLimits, body: _Body, more_bytes: int) -> None:
        hold(limits, body, more_bytes)
        held.append(limits._held_bytes)

    monkeypatch.setattr(BodyLimits, "hold", noted)
    bench = build(max_body_bytes=1 << 20, max_bodies_bytes=2 << 20)
    monkeypatch.setattr("onsight.api.body_limits.caller_name", lambda scope: str(scope["client"]))  # each its own
    nearly = request_head(1 << 20, b"{".ljust((1 << 20) - 1))
    async with bench.served() as url, httpx.AsyncClient(base_url=url) as client:
        async with dialled(url, nearly), dialled(url, nearly):
            await until(lambda: held[-1:] == [(2 << 20) - 2])
            assert (await client.post(ROUTE, json={"messages": hello()})).status_code == 429
        async with asyncio.timeout(5):
            while (await client.post(ROUTE, json={"messages": hello()})).status_code != 200:
                await asyncio.sleep(0.01)


async def test_one_key_s_bodies_leave_room_for_another_s(build: Callable[..., Bench], tmp_path: Path) -> None:
    (mine, first), (theirs, second) = (new_key(name, ["chat"]) for name in ("mine", "theirs"))
    write_keys(tmp_path / "keys.json", (first, second))
    bench = build(keys=KeyBook(file=tmp_path / "keys.json"), max_body_bytes=1 << 20, max_bodies_bytes=4 << 20)
    key = f"\r\nauthorization: Bearer {theirs}\r\n\r\n".encode()
    nearly = request_head(1 << 20, b"{".ljust((1 << 20) - 8)).replace(b"\r\n\r\n", key)
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'.ljust(1 << 20)
    async with bench.served() as url, AsyncExitStack() as stack:
        sent = [await stack.enter_async_context(dialled(url, nearly)) for _ in range(4)]
        heads = [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader, _ in sent]
        await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        refused = [head.result() for head in heads if head.done()]
        assert [head[:12] for head in refused] == [b"HTTP/1.1 429"]
        assert b"retry-after: 2" in refused[0]
        async with httpx.AsyncClient(base_url=url, headers={**JSON, "authorization": f"Bearer {mine}"}) as client:
            assert (await client.post(ROUTE, content=body)).status_code == 200
            client.headers["authorization"] = f"Bearer {theirs}"
            answer = await client.post(ROUTE, content=body)
        assert answer.status_code == 429
        assert f"would be more than {3 << 20}" in answer.json()["error"]["message"]
        for head in heads:
            head.cancel()


async def test_without_keys_one_address_leaves_room_for_another_and_none_is_remembered() -> None:
    held, done = asyncio.Semaphore(0), asyncio.Event()

    async def reads(scope: object, receive: Callable[..., object], send: object) -> None:
        await receive()
        held.release()
        await done.wait()

    limits = BodyLimits(reads, max_bytes=100, max_total_bytes=400, timeout_s=1)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 100, "more_body": False}

    def send_from(address: str) -> asyncio.Future[None]:
        scope = {"type": "http", "headers": [(b"content-length", b"100")], "client": (address, 1)}
        return asyncio.ensure_future(asyncio.wait_for(limits(scope, receive, None), 5))

    sent = [send_from("192.0.2.1") for _ in range(3)]
    for _ in sent:
        await held.acquire()
    with pytest.raises(Overloaded, match="your other requests hold 300 bytes, and with this body's 100"):
        await send_from("192.0.2.1")
    sent.append(send_from("192.0.2.2"))
    await held.acquire()
    with pytest.raises(Overloaded, match="too many large requests"):
        await send_from("192.0.2.3")
    done.set()
    await asyncio.gather(*sent)
    assert not limits._holders
    await send_from("192.0.2.1")


async def test_a_body_that_was_announced_and_does_not_come_takes_no_room(build: Callable[..., Bench]) -> None:
    bench = build(max_body_bytes=1 << 20, max_bodies_bytes=2 << 20)
    async with bench.served() as url, AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(dialled(url, request_head(1 << 20, b"{")))
        body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'
        async with httpx.AsyncClient(base_url=url) as client:
            await client.get("/health")  # whose connection comes after theirs
            response = await client.post(ROUTE, content=body.ljust(1 << 20), headers=JSON)
        assert response.status_code == 200


async def test_what_a_body_reserved_is_given_back_however_its_request_ends() -> None:
    async def reads(scope: object, receive: Callable[..., object], send: object) -> None:
        await receive()
        raise Overloaded("x")

    limits = BodyLimits(reads, max_bytes=100, max_total_bytes=100, timeout_s=1)
    scope = {"type": "http", "headers": [(b"content-length", b"100")]}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 100, "more_body": False}

    for _ in range(3):
        with pytest.raises(Overloaded, match=r"^x$"):
            await limits(scope, receive, None)


async def test_a_full_queue_refuses_before_it_reads_a_body(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(step_s=600), places=1)
    async with bench.served() as url, httpx.AsyncClient(base_url=url) as client:
        waiting = asyncio.create_task(client.post(ROUTE, json={"messages": hello()}))
        await until(lambda: bench.admission.taken == 1)
        async with dialled(url, request_head(5_000_000)) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1" in head
        waiting.cancel()
        await until(lambda: bench.admission.taken == 0)


async def test_a_server_that_is_stopping_refuses_with_503(bench: Bench) -> None:
    bench.admission.close()
    response = await bench.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


async def test_a_thousand_clients_on_a_queue_of_32_are_answered_or_told_to_come_back(
    build: Callable[..., Bench],
) -> None:
    bench = build(FakeScript(step_s=0.001), places=32)
    async with bench.client() as client:
        body = {"messages": hello(), "max_tokens": 2}
        responses = await asyncio.gather(*(client.post(ROUTE, json=body) for _ in range(1000)))
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 429}
    assert all("retry-after" in response.headers for response in responses if response.status_code == 429)
    assert bench.admission.taken == 0
