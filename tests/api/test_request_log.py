"""One line a request in the log, and no prompt in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest

from onsight.engines.fake_engine import FakeScript
from tests.api.conftest import Bench, hello


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("onsight")]


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answered_request_is_one_line(bench: Bench, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    response = await bench.chat(messages=hello("my secret"), max_tokens=5, stream=stream)
    (line,) = lines(caplog)
    assert re.fullmatch(
        rf"request id={response.headers['x-request-id']} caller=127.0.0.1 task=chat model=fake images=0 videos=0"
        r" tokens_in=2 cached=0 tokens_out=5 first_token_ms=\d+\.\d tokens_per_s=\d+\.\d"
        r" seconds=\d+\.\d+ reason=length",
        line,
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "engine_error"),
        ({"foo": 1}, "unknown_field"),
        ({"model": "x"}, "model_not_found"),
        ({"messages": [*hello(), {"role": "assistant", "content": "x"}]}, "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]}]}, "invalid_image"),
    ],
)
async def test_a_refused_or_failed_request_is_one_line_too(
    build: Callable[..., Bench], caplog: pytest.LogCaptureFixture, fields: dict[str, object], reason: str
) -> None:
    response = await build(FakeScript(fail_after=1)).chat(**fields)
    (line,) = lines(caplog)
    assert f"id={response.headers['x-request-id']} " in line
    assert line.endswith(f"reason={reason}")


async def test_probes_are_not_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/ready", "/metrics", "/"):
        await bench.get(path)
    assert lines(caplog) == []
