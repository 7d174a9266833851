"""One client's side of a chat request: what was sent, what came back, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import httpx

from benchmarks.screens import data_url

TIMEOUT_S = 900.0
KEY = "benchmark"
"""Sent with every request; a server without keys does not look at it."""


class AnswerFailed(RuntimeError):
    """A server refused or broke off an answer; the text says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it.

    `first_s`: seconds from sending to the first text (the whole answer, where nothing is streamed).
    `total_s`: seconds until the end. `tokens` were generated and `prompt_tokens` read, as the server counts them.
    """

    first_s: float
    total_s: float
    tokens: int
    text: str
    prompt_tokens: int


def question(
    picture: bytes, text: str, *, tokens: int, stream: bool = True, text_first: bool = False, model: str = "peek"
) -> bytes:
    """The body of a request about one PNG file, greedy, with at most `tokens` tokens of answer."""
    parts: list[object] = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": text},
    ]
    turn: dict[str, object] = {"role": "user", "content": parts[::-1] if text_first else parts}
    return chat_body([turn], tokens=tokens, stream=stream, model=model)


def chat_body(turns: list[dict[str, object]], *, tokens: int, stream: bool = True, model: str = "peek") -> bytes:
    """The body of a chat request; encoded beforehand, so that encoding is not measured."""
    body: dict[str, object] = {"model": model, "messages": turns, "max_tokens": tokens, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


async def ask(client: httpx.AsyncClient, body: bytes, begun: asyncio.Event | None = None) -> Answer:
    """Send one request and read the answer to its end; `begun` is set at its first text. Raises AnswerFailed."""
    began_s = time.perf_counter()
    first_s: float | None = None
    received = bytearray()
    headers = {"content-type": "application/json"}
    async with client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as response:
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        async for piece in response.aiter_raw():
            received += piece
            if first_s is None and streamed and _has_text(received):
                first_s = time.perf_counter() - began_s
                if begun is not None:
                    begun.set()
    total_s = time.perf_counter() - began_s
    if response.status_code != 200:
        raise AnswerFailed(f"{response.status_code}: {received[:500].decode('utf-8', 'replace')}")
    if not streamed:
        whole = json.loads(received)
        text = whole["choices"][0]["message"]["content"]
        usage = whole["usage"]
        return Answer(total_s, total_s, usage["completion_tokens"], text, usage["prompt_tokens"])
    text, tokens, prompt_tokens = _fold(received)
    return Answer(total_s if first_s is None else first_s, total_s, tokens, text, prompt_tokens)


def _events(stream: bytes | bytearray) -> Iterable[dict[str, object]]:
    """The complete JSON events of a stream."""
    for event in bytes(stream).replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        if event.startswith(b"data: {"):
            yield json.loads(event.removeprefix(b"data: "))


def _has_text(stream: bytearray) -> bool:
    return b'"content":' in stream and bool(_fold(stream)[0])


def _fold(stream: bytes | bytearray) -> tuple[str, int, int]:
    """(text, tokens generated, tokens read) of a stream so far. Raises AnswerFailed for an error event."""
    text, tokens, prompt_tokens = "", 0, 0
    for event in _events(stream):
        if event.get("error"):
            raise AnswerFailed(str(event["error"]))
        for choice in event.get("choices") or ():  # type: ignore[attr-defined]
            text += choice["delta"].get("content") or ""
        usage = event.get("usage")
        if isinstance(usage, dict):
            tokens, prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    return text, tokens, prompt_tokens


async def ask_all(url: str, bodies: Sequence[bytes], clients: int) -> tuple[list[Answer], float]:
    """Let so many clients work through the requests, one each at a time; the answers in order, and seconds in all."""
    waiting = deque(enumerate(bodies))
    answers: dict[int, Answer] = {}
    async with connect(url, clients) as client:

        async def work() -> None:
            while waiting:
                number, body = waiting.popleft()
                answers[number] = await ask(client, body)

        began_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        total_s = time.perf_counter() - began_s
    return [answers[number] for number in range(len(bodies))], total_s


def connect(url: str, connections: int) -> httpx.AsyncClient:
    """A client of the server at `url` that keeps its connections."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, headers=headers, trust_env=False)
