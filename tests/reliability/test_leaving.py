"""A client that leaves, at any moment, frees what it held."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest

from onsight.api.connection import ClientLeft, while_connected
from onsight.api.sse import EventStream
from onsight.engines.fake_engine import FakeScript
from tests.api.conftest import Bench, chat_bytes, dialled, hello, request_head, until

SLOW = FakeScript(step_s=0.02)
STUCK = FakeScript(step_s=600)


async def _freed(bench: Bench) -> None:
    await until(lambda: bench.engine.status().running == 0 and bench.admission.taken == 0 and len(bench.records) == 1)
    assert bench.records[0].reason == "cancelled"


async def test_leaving_in_mid_stream_frees_the_engine(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(step_s=0.2))
    async with bench.served() as url:
        async with dialled(url, chat_bytes(stream=True)) as (reader, _):
            await reader.readuntil(b"data: ")
            assert bench.engine.status().running == 1
        await _freed(bench)


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_token_frees_the_engine(build: Callable[..., Bench], stream: bool) -> None:
    bench = build(STUCK)
    async with bench.served() as url:
        async with dialled(url, chat_bytes(stream=stream, n=2)):
            await until(lambda: bench.engine.status().running == 1)
        await _freed(bench)


async def test_leaving_with_several_answers_under_way_frees_them_all(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(step_s=0.2))
    async with bench.served() as url:
        async with dialled(url, chat_bytes(stream=True, n=3)):
            await until(lambda: bench.engine.status().running == 3)
        await _freed(bench)


async def test_leaving_in_mid_plain_answer_frees_the_engine(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(step_s=0.2))
    async with bench.served() as url:
        async with dialled(url, chat_bytes()):
            await until(lambda: bench.engine.status().steps_total >= 1)
        await _freed(bench)


async def test_leaving_in_mid_body_holds_nothing_and_logs_no_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with bench.served() as url:
        async with dialled(url, request_head(1000, b'{"messages"')):
            await asyncio.sleep(0)
        async with httpx.AsyncClient() as client:
            response = await client.post(f"{url}/v1/chat/completions", json={"messages": hello()})
        assert response.status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


async def test_those_who_stay_are_answered_while_others_leave(build: Callable[..., Bench]) -> None:
    bench = build(SLOW)
    async with bench.served() as url, httpx.AsyncClient() as client:
        staying = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json={"messages": hello()}))
        for _ in range(5):
            async with dialled(url, chat_bytes(stream=True)) as (reader, _):
                await reader.readuntil(b"data: ")
        assert (await staying).json()["choices"][0]["finish_reason"] == "stop"
        await until(lambda: bench.admission.taken == 0)
    assert sorted(record.reason for record in bench.records) == ["cancelled"] * 5 + ["stop"]


class Source:
    """An endless stream that tells when it has been closed."""

    def __init__(self) -> None:
        self.closed = False

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield b"x"
        finally:
            self.closed = True


async def test_an_event_stream_closes_its_source_before_it_returns() -> None:
    source = Source()
    sent: list[dict[str, object]] = []
    leaving = asyncio.Event()

    async def receive() -> dict[str, object]:
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if len(sent) == 5:
            leaving.set()

    with pytest.raises(ClientLeft):
        await EventStream(b"first", source.stream())({"type": "http"}, receive, send)
    assert source.closed
    assert sent[1]["body"] == b"first"


async def test_an_event_stream_whose_client_reads_nothing_is_closed_when_it_leaves() -> None:
    source = Source()
    stream = source.stream()
    first = await anext(stream)

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClientLeft):
        await EventStream(first, stream)({"type": "http"}, receive, send)
    assert source.closed


async def test_work_that_ends_first_wins_over_a_client_that_stays() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def work() -> int:
        return 5

    assert await while_connected(receive, work()) == 5
