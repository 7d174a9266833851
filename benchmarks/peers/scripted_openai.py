"""A server of OpenAI's API without a model: it streams the same short words to everybody, as fast or slow as told.

python -m benchmarks.peers.scripted_openai PORT TOKENS PACE_MS
"""

from __future__ import annotations

import argparse
import asyncio
import json

CONTEXT = 32_768


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def whole(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Scripted:
    """`tokens` words an answer, `pace_s` seconds before each."""

    def __init__(self, tokens: int, pace_s: float) -> None:
        self._tokens, self._pace_s = tokens, pace_s
        model = {"id": "scripted", "owned_by": "vllm", "max_model_len": CONTEXT}
        self._models = whole("200 OK", "application/json", json.dumps({"data": [model]}).encode())
        self._word = event(choices=[{"index": 0, "delta": {"content": "word "}, "finish_reason": None}])
        usage = {"prompt_tokens": 9, "completion_tokens": tokens}
        last = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self._end = last + event(choices=[], usage=usage) + b"data: [DONE]\n\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; its requests one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = next(
                    (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0
                )
                await reader.readexactly(length)
                if head.startswith("post /v1/chat/completions"):
                    await self._answer(writer)
                elif head.startswith("get /v1/models"):
                    writer.write(self._models)
                else:
                    writer.write(whole("404 Not Found", "text/plain", b""))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(self._tokens):
            await asyncio.sleep(self._pace_s)
            _chunk(writer, self._word)
            await writer.drain()
        _chunk(writer, self._end)
        writer.write(b"0\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def listen(port: int, scripted: Scripted) -> None:
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("pace_ms", type=float)
    given = parser.parse_args()
    asyncio.run(listen(given.port, Scripted(given.tokens, given.pace_ms / 1000)))


if __name__ == "__main__":
    main()
