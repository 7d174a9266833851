"""A server on a loopback port that speaks OpenAI's chat API by a script: well, slowly, brokenly or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Play = Callable[[asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(**fields: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def ending(reason: str = "stop", prompt: int = 9, completion: int = 2) -> bytes:
    """The last events of an answer."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": {"image_tokens": 4}}
    last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    return last + chunk(choices=[], usage=usage) + b"data: [DONE]\n\n"


async def endless(writer: asyncio.StreamWriter) -> None:
    """An answer that nothing but a cut ends."""
    writer.write(HEAD)
    while True:
        writer.write(piece("la "))
        await writer.drain()
        await asyncio.sleep(0.02)


def says(*sent: bytes) -> Play:
    """Sends these bytes, and closes."""

    async def play(writer: asyncio.StreamWriter) -> None:
        for part in sent:
            writer.write(part)
            await writer.drain()

    return play


def slowly(pause_s: float, *sent: bytes) -> Play:
    """Sends these bytes with a pause after each, and closes."""

    async def play(writer: asyncio.StreamWriter) -> None:
        for part in sent:
            await says(part)(writer)
            await asyncio.sleep(pause_s)

    return play


def answers(status: int, body: object = "") -> Play:
    """Answers with that status and body."""
    text = (body if isinstance(body, str) else json.dumps(body)).encode()
    return says(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(text)) + text)


GOOD = says(HEAD, piece("Hello"), piece(" you"), ending())


def drops() -> Play:
    """Hangs up without a word."""
    return says()


@dataclass
class Scripted:
    """Plays `plays` one after another, then `usual` ones. `bodies`: what was asked; `left`: how often a client left.
    `key`: without it nobody is let in. `context_tokens`: what it says that it holds, None for nothing.

    `pages`: what other routes answer, by their path; `told`: what they were asked last.
    """

    url: str = ""
    owner: str = "somebody"
    model: str = "scripted"
    key: str | None = None
    context_tokens: int | None = 4096
    plays: list[Play] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    models_status: int = 200
    left: int = 0
    pages: dict[str, Play] = field(default_factory=dict)
    told: dict[str, dict[str, object]] = field(default_factory=dict)
    usual: Play = GOOD

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-l")), 0)
            body = await reader.readexactly(length)
            if self.key is not None and f"\r\nauthorization: bearer {self.key.lower()}\r\n" not in head:
                await answers(401, {"error": "Unauthorized"})(writer)
            elif (path := head.split()[1]) in self.pages:
                self.told[path] = json.loads(body or b"{}")
                await self.pages[path](writer)
            elif path == "/v1/models":
                model = {"id": self.model, "owned_by": self.owner, "max_model_len": self.context_tokens}
                await answers(self.models_status, {"data": [model]})(writer)
            else:
                self.bodies.append(json.loads(body))
                await (self.plays.pop(0) if self.plays else self.usual)(writer)
        except ConnectionError:
            self.left += 1
        finally:
            writer.close()


@asynccontextmanager
async def scripted(owner: str = "somebody") -> AsyncIterator[Scripted]:
    """The server, on a free port."""
    server = Scripted(owner=owner)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
