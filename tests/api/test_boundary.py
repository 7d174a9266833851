"""Every answer has a request id, and every error, foreseen or not, has the error object."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable

import pytest

from onsight.core import errors
from onsight.core.generation import Event, Finished, GenerateRequest, TextDelta, Usage
from onsight.engines.fake_engine import FakeEngine
from tests.api.conftest import Bench, events

PATHS = [
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/models",
    "/nowhere",
    "/v1/chat/completions",
]


class Raising(FakeEngine):
    """Raises `error` after `after` pieces of text."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self._error = error
        self._after = after

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        for _ in range(self._after):
            yield TextDelta("piece ")
        if self._after < 9:
            raise self._error
        yield Finished("stop", Usage(1, 1))


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_carries_a_request_id(bench: Bench, path: str) -> None:
    own, other = await bench.get(path), await bench.get(path)
    assert own.headers["x-request-id"] != other.headers["x-request-id"]
    assert (await bench.get(path, **{"x-request-id": "mine-1.a_B"})).headers["x-request-id"] == "mine-1.a_B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a;b", "é"])
async def test_an_insane_request_id_is_replaced(bench: Bench, given: str) -> None:
    async with bench.client() as client:
        response = await client.get("/health", headers={"x-request-id": given.encode()})
    assert response.headers["x-request-id"].isalnum()


async def test_an_unknown_path_is_404_with_the_error_object(bench: Bench) -> None:
    response = await bench.get("/v1/nothing")
    assert response.status_code == 404
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "not_found"


async def test_a_wrong_method_is_405_and_says_which_is_right(bench: Bench) -> None:
    response = await bench.get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (errors.InvalidRequest("x"), 400, None),
        (errors.InvalidMedia("x"), 400, None),
        (errors.UnknownModel("x"), 404, None),
        (errors.TimedOut("x"), 408, None),
        (errors.TooLarge("x"), 413, None),
        (errors.Overloaded("x", retry_after_s=7), 429, "7"),
        (errors.EngineFailed("x"), 500, None),
        (errors.Unavailable("x", retry_after_s=3), 503, "3"),
    ],
)
async def test_each_error_has_its_status(
    build: Callable[..., Bench], error: errors.RequestError, status: int, retry_after: str | None
) -> None:
    for stream in (False, True):
        response = await build(engine=Raising(error)).chat(stream=stream)
        assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
        assert response.json()["error"] == {
            "message": "x",
            "type": response.json()["error"]["type"],
            "param": None,
            "code": error.code,
        }


@pytest.mark.parametrize("stream", [False, True])
async def test_what_nobody_foresaw_is_500_without_internals_and_logged_with_its_id(
    build: Callable[..., Bench], caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    bench = build(engine=Raising(ValueError("secret /etc/passwd")))
    response = await bench.chat(stream=stream)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "ValueError" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 1
    assert response.headers["x-request-id"] in logged[0].getMessage()
    assert bench.records[0].reason == "internal_error"
    assert bench.admission.taken == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_memory_that_is_not_there_is_called_so(build: Callable[..., Bench], stream: bool) -> None:
    response = await build(engine=Raising(MemoryError())).chat(stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "out_of_memory")


async def test_what_nobody_foresaw_in_mid_stream_ends_it_with_an_error_event(build: Callable[..., Bench]) -> None:
    response = await build(engine=Raising(ValueError("secret"), after=2)).chat(stream=True)
    *chunks, last = events(response)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "piece ", "piece "]
    assert last["error"]["code"] == "internal_error"
    assert "secret" not in response.text


async def test_a_name_with_a_line_break_forges_no_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await bench.get("/v1/models/a%0d%0arequest id=forged")
    await bench.chat(model="a\r\nrequest id=forged")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("onsight")]
    assert len(lines) == 2
    assert not any("\n" in line or "\r" in line for line in lines)
