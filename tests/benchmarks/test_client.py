"""A client's clock and its reading of streams, against a server that is written down here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from benchmarks.client import AnswerFailed, ask, question


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


STREAM = [
    _event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
    _event(choices=[{"delta": {"content": "a sc"}}]),
    _event(choices=[{"delta": {"content": "reen"}, "finish_reason": "length"}])[:20],
    _event(choices=[{"delta": {"content": "reen"}, "finish_reason": "length"}])[20:],
    _event(choices=[], usage={"completion_tokens": 2, "prompt_tokens": 9}),
    b"data: [DONE]\n\n",
]


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def _client(status: int, kind: str, pieces: list[bytes]) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"content-type": kind}, stream=_Pieces(pieces))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")


async def test_a_stream_is_folded_and_its_first_text_is_timed() -> None:
    async with _client(200, "text/event-stream", STREAM) as client:
        answer = await ask(client, question(b"png", "What?", tokens=2))
    assert (answer.text, answer.tokens) == ("a screen", 2)
    assert 0 < answer.first_s <= answer.total_s


async def test_a_whole_answer_has_its_first_text_at_its_end() -> None:
    whole = {"choices": [{"message": {"content": "a screen"}}], "usage": {"completion_tokens": 2, "prompt_tokens": 9}}
    async with _client(200, "application/json", [json.dumps(whole).encode()]) as client:
        answer = await ask(client, question(b"png", "What?", tokens=2, stream=False))
    assert (answer.text, answer.tokens) == ("a screen", 2)
    assert answer.first_s == answer.total_s


@pytest.mark.parametrize(
    ("status", "kind", "pieces"),
    [
        (429, "application/json", [b'{"error": {"message": "full"}}']),
        (200, "text/event-stream", [*STREAM[:2], _event(error={"message": "full"})]),
    ],
)
async def test_a_refusal_is_no_answer(status: int, kind: str, pieces: list[bytes]) -> None:
    async with _client(status, kind, pieces) as client:
        with pytest.raises(AnswerFailed, match="full"):
            await ask(client, question(b"png", "What?", tokens=2))
