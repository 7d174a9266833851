"""Answers as a whole: how a long one is sent."""

from __future__ import annotations

from starlette.types import Message

from onsight.api.whole import LongJson


async def test_a_long_answer_is_handed_over_piece_by_piece() -> None:
    body, sent = b"1234567" * 500_000, []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    await LongJson(body)({"type": "http"}, receive, send)
    start, *pieces = sent
    assert start["status"] == 200
    assert dict(start["headers"]) == {b"content-length": b"3500000", b"content-type": b"application/json"}
    assert b"".join(piece["body"] for piece in pieces) == body
    assert max(len(piece["body"]) for piece in pieces) == 1 << 16
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
