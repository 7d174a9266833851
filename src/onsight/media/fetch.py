"""The one place that fetches: downloads a picture or video that a client named by URL, from public addresses only.

A name is resolved once and every answer is checked; the checked address itself is dialled, so that a second look-up
cannot lead inside, while the Host header and TLS keep the name. Each redirect passes the same checks. Nothing is
taken from the environment (proxies), nothing is kept between requests (cookies, connections), nothing is sent but a
bare GET.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import httpcore
import httpx

from onsight.core.errors import InvalidMedia, TimedOut, TooLarge, Unsupported
from onsight.core.turns import Turns
from onsight.media.addresses import is_address, is_public
from onsight.media.limits import Kind, MediaLimits

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host name, port) -> the texts of all its addresses. Raises OSError when there are none."""

LOOKUPS_AT_ONCE = 4
"""Names that are looked up at once, for all requests."""
_MAX_URL_CHARS = 8192
_MAX_DIALS = 4
_DIAL_TIMEOUT_S = 5.0
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_PORTS = {"http": 80, "https": 443}
_ACCEPTED: dict[Kind, bytes] = {"image": b"image/*, application/pdf", "video": b"video/*, image/gif"}
_BROKEN = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
)


def system_resolver(lookups: Executor) -> Resolver:
    """The operating system's name look-up, run in `lookups`: it blocks, and a slow one must not hold other pools."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(lookups, socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
        return [str(answer[4][0]) for answer in answers]

    return resolve


class CheckedDialer(httpcore.AsyncNetworkBackend):
    """Resolves a name once, refuses it if any of its addresses is not public, and dials the very address it checked.

    With `trusted` (a host on the operator's allow-list) the addresses may be internal.
    """

    def __init__(
        self, resolver: Resolver, network: httpcore.AsyncNetworkBackend, trusted: bool, kind: Kind = "image"
    ) -> None:
        """`kind`: what error texts call the thing that is fetched."""
        self._resolver = resolver
        self._network = network
        self._trusted = trusted
        self._kind = kind

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout=_DIAL_TIMEOUT_S)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout=_DIAL_TIMEOUT_S)

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = [host] if is_address(host) else await self._resolver(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise InvalidMedia(f"cannot fetch the {self._kind}: the host {host} was not found")
        if not self._trusted and not all(is_public(address) for address in addresses):
            raise InvalidMedia(
                f"cannot fetch the {self._kind}: {host} is not a public host; send the {self._kind} as a data: URL"
            )
        return addresses[:_MAX_DIALS]


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer: a body, or where to look instead."""

    body: bytes
    location: str | None = None


class Fetcher:
    """Downloads pictures and videos within the limits, for many tasks at once; holds no connection between fetches."""

    def __init__(
        self,
        limits: MediaLimits,
        resolver: Resolver,
        network: httpcore.AsyncNetworkBackend | None = None,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._resolver = resolver
        self._lookups = Turns(LOOKUPS_AT_ONCE)
        self._network = network or httpcore.AnyIOBackend()
        self._certificates = certificates or httpx.create_ssl_context(trust_env=False)
        self._allowed_hosts = frozenset(_plain(host) for host in limits.allowed_hosts)

    def check(self, url: str, kind: Kind = "image") -> httpx.URL:
        """Parse a URL; without any network, refuse one that may not be fetched (Unsupported or InvalidMedia)."""
        limits = self._limits
        if limits.remote == "off":
            raise Unsupported(
                f"fetching remote {kind}s is off on this server (media.remote); send the {kind} as a data: URL"
            )
        if len(url) > _MAX_URL_CHARS:
            raise InvalidMedia(f"the {kind} URL has {len(url)} characters; the limit is {_MAX_URL_CHARS}")
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL:
            raise InvalidMedia(f"the {kind} URL is malformed; write https://host/path") from None
        if target.scheme not in _PORTS or not target.raw_host:
            raise InvalidMedia(f"the {kind} URL must be http:// or https:// with a host")
        if target.userinfo or "@" in url.partition("//")[2].partition("/")[0]:
            raise InvalidMedia(f"the {kind} URL has a user name or password in it; leave them out")
        host = target.raw_host.decode("ascii")
        port = target.port or _PORTS[target.scheme]
        if port not in limits.allowed_ports:
            raise InvalidMedia(f"port {port} of {host} is not allowed (media.allowed_ports)")
        if limits.remote == "allow-list" and _plain(host) not in self._allowed_hosts:
            raise InvalidMedia(f"{host} is not on this server's list of {kind} hosts (media.allowed_hosts)")
        return target

    async def fetch(self, url: str, deadline: float, kind: Kind = "image", caller: str = "") -> bytes:
        """The body behind a URL, until `deadline` (event loop time). Raises InvalidMedia, TooLarge or TimedOut.

        `caller`: who asks, as those who wait for a look-up take turns.
        """
        target = self.check(url, kind)
        try:
            async with asyncio.timeout_at(deadline):
                for _ in range(self._limits.max_redirects + 1):
                    reply = await self._get(target, kind, caller)
                    if reply.location is None:
                        return reply.body
                    target = self._next(target, reply.location, kind)
        except TimeoutError:
            limit = f"{self._limits.fetch_timeout_s:g} s (media.fetch_timeout_s)"
            raise TimedOut(f"cannot fetch the {kind}: {_host(target)} did not send it within {limit}") from None
        raise InvalidMedia(f"cannot fetch the {kind}: more than {self._limits.max_redirects} redirects")

    def _next(self, target: httpx.URL, location: str, kind: Kind) -> httpx.URL:
        try:
            following = self.check(str(target.join(location)), kind)
        except httpx.InvalidURL:
            raise InvalidMedia(f"cannot fetch the {kind}: {_host(target)} redirects to a malformed URL") from None
        if target.scheme == "https" and following.scheme == "http":
            raise InvalidMedia(f"cannot fetch the {kind}: {_host(target)} redirects from https to http")
        return following

    async def _get(self, target: httpx.URL, kind: Kind, caller: str) -> _Reply:
        async def resolve(host: str, port: int) -> Sequence[str]:
            return await self._lookups.through(caller, lambda: self._resolver(host, port))

        trusted = self._limits.remote == "allow-list"
        connection = httpcore.AsyncHTTPConnection(
            origin=httpcore.Origin(target.raw_scheme, target.raw_host, target.port or _PORTS[target.scheme]),
            ssl_context=self._certificates,
            network_backend=CheckedDialer(resolve, self._network, trusted, kind),
        )
        headers = {
            b"Host": target.netloc,
            b"User-Agent": b"onsight",
            b"Accept": _ACCEPTED[kind],
            b"Accept-Encoding": b"identity",
            b"Connection": b"close",
        }
        url = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        try:
            async with connection, connection.stream("GET", url, headers=list(headers.items())) as response:
                return await self._read(target, response, kind)
        except _BROKEN as error:
            why = (
                "its certificate was not accepted"
                if isinstance(error.__cause__, ssl.SSLCertVerificationError)
                else "the connection failed"
            )
            raise InvalidMedia(f"cannot fetch the {kind} from {_host(target)}: {why}") from None

    async def _read(self, target: httpx.URL, response: httpcore.Response, kind: Kind) -> _Reply:
        headers = {name.lower(): value.decode("latin-1").strip() for name, value in response.headers}
        if response.status in _REDIRECTS and b"location" in headers:
            return _Reply(b"", headers[b"location"])
        if response.status != 200:
            raise InvalidMedia(f"cannot fetch the {kind}: {_host(target)} answered {response.status}")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise InvalidMedia(
                f"cannot fetch the {kind}: {_host(target)} sent it compressed a second time (Content-Encoding)"
            )
        if headers.get(b"content-type", "").lower().startswith(("text/html", "application/xhtml")):
            noun = "an image" if kind == "image" else "a video"
            raise InvalidMedia(f"{_host(target)} sent a web page, not {noun}; use the address of the {kind} itself")
        max_bytes = self._limits.bytes_of(kind)
        too_large = TooLarge(f"the {kind} at {_host(target)} has more than {self._limits.byte_limit(kind)}")
        length = headers.get(b"content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise too_large
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
        return _Reply(bytes(body))


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _plain(host: str) -> str:
    """A host name as it is compared: lower case, without the root's dot or an IPv6 address's brackets."""
    return host.lower().rstrip(".").removeprefix("[").removesuffix("]")
