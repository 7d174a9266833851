"""A pretended network: names, addresses and answers, all written down by the test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence

import httpcore


class Names:
    """A resolver. Each name has a list of answers; the last one is repeated."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(rounds) for name, rounds in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        rounds = self.answers.get(host.rstrip("."))
        if rounds is None:
            raise OSError("no such name in resolver 10.0.0.53")
        return rounds.pop(0) if len(rounds) > 1 else rounds[0]


class Stream(httpcore.AsyncNetworkStream):
    """Gives out the chunks of one answer, slowly if told so, and remembers what it was sent."""

    def __init__(self, network: Network, chunks: Iterable[bytes]) -> None:
        self._network = network
        self._chunks = iter(chunks)
        self._open = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(self._network.pause_s)
        chunk = next(self._chunks, b"")
        self._network.bytes_read += len(chunk)
        return chunk

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._network.written += buffer

    async def aclose(self) -> None:
        self._network.closed += self._open
        self._open = False

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        self._network.tls_names.append(server_hostname)
        return self

    def get_extra_info(self, info: str) -> object:
        return None


class Network(httpcore.AsyncNetworkBackend):
    """Answers each connection in turn with the next of `answers` (the last is repeated)."""

    def __init__(self, *answers: Iterable[bytes], dead: frozenset[str] = frozenset(), pause_s: float = 0.0) -> None:
        self._answers = list(answers)
        self._dead = dead
        self.pause_s = pause_s
        self.dialled: list[tuple[str, int]] = []
        self.tls_names: list[str | None] = []
        self.written = b""
        self.bytes_read = 0
        self.closed = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append((host, port))
        if host in self._dead:
            raise httpcore.ConnectError(f"connect to {host} refused")
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return Stream(self, answer)


def reply(body: bytes, *headers: str, status: str = "200 OK") -> list[bytes]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return ["\r\n".join(lines).encode() + body]


def redirect(location: str, status: str = "302 Found") -> list[bytes]:
    return reply(b"", f"Location: {location}", status=status)
