"""The log cannot be written into by who sends requests, and says nothing of what they ask."""

from __future__ import annotations

import logging

import pytest

from onsight.api.request_log import log_request
from onsight.tasks.record import Record
from tests.api.conftest import Bench, hello


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("onsight")]


def test_no_value_can_break_the_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_request(Record("id\r\nrequest id=forged", "chat", "a\u2028b\x1b[0m reason=stop", reason='x"y'))
    (line,) = lines(caplog)
    assert line.isascii()
    assert line.isprintable()
    assert 'model="a\\u2028b\\u001b[0m reason=stop"' in line


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_that_is_asked_or_answered_is_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    answer = await bench.chat(messages=hello("my secret"), stream=stream)
    assert "secret" in answer.text
    (line,) = lines(caplog)
    assert line.startswith("request id=")
    assert "secret" not in line
    assert "engine" not in line
