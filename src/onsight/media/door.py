"""The media door: every picture of a request comes in here, is fetched, checked and decoded, or refused by name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpcore

from onsight.core.errors import InvalidMedia, RequestError, TooLarge
from onsight.core.messages import Image, ImageRef
from onsight.media.containers import PictureFile
from onsight.media.data_url import check_data_url, decode_data_url
from onsight.media.fetch import Fetcher, Resolver, system_resolver
from onsight.media.image import decode_image, read_header
from onsight.media.limits import MediaLimits

__all__ = ["MediaDoor", "MediaLimits"]

_FETCHES_AT_ONCE = 6
_LOOKUP_THREADS = 4
_MAX_SCHEME_CHARS = 20

T = TypeVar("T")


class MediaDoor:
    """Opens picture references. One for the whole server; its threads are shared by all requests.

    `resolver`, `network` and `certificates` replace the operating system's name look-up, TCP and trusted authorities.
    """

    def __init__(
        self,
        limits: MediaLimits | None = None,
        *,
        resolver: Resolver | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or MediaLimits()
        self._decoders = ThreadPoolExecutor(self.limits.decode_workers, "onsight-decode")
        self._lookups = ThreadPoolExecutor(_LOOKUP_THREADS, "onsight-lookup")
        self._fetcher = Fetcher(self.limits, resolver or system_resolver(self._lookups), network, certificates)

    async def open(self, refs: Sequence[ImageRef]) -> tuple[Image, ...]:
        """Turn all picture references of one request into checked pictures, in order, with their options.

        Raises InvalidMedia, TooLarge, TimedOut or Unsupported, with the `param` of the reference at fault. When one
        picture is refused, or the caller is cancelled, the other fetches stop. Nothing is decoded before all
        headers are known and allowed.
        """
        self._check(refs)
        slots = asyncio.Semaphore(_FETCHES_AT_ONCE)
        deadline = asyncio.get_running_loop().time() + self.limits.fetch_timeout_s
        budget = _ByteBudget(max(self.limits.max_request_bytes, self.limits.max_bytes))

        async def read(ref: ImageRef) -> PictureFile:
            with _Blame(ref):
                data = await self._encoded(ref, slots, deadline)
                budget.take(len(data))
                return await self._in_pool(lambda: read_header(data, self.limits))

        files = await _all(read(ref) for ref in refs)
        self._check_pixels(files)

        async def decode(ref: ImageRef, file: PictureFile) -> Image:
            with _Blame(ref):
                return await self._in_pool(lambda: decode_image(file, ref.options))

        return tuple(await _all(decode(ref, file) for ref, file in zip(refs, files, strict=True)))

    def close(self) -> None:
        """Stop the threads; pictures still waiting to be decoded are dropped. May be called twice."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def _check(self, refs: Sequence[ImageRef]) -> None:
        """Refuse whatever can be refused by looking at counts, lengths and the beginnings of URLs."""
        if len(refs) > self.limits.max_images:
            limit = f"the limit is {self.limits.max_images} (media.max_images)"
            raise InvalidMedia(f"the request has {len(refs)} images; {limit}", param=refs[self.limits.max_images].param)
        for ref in refs:
            with _Blame(ref):
                self._check_source(ref.source)

    def _check_source(self, source: str | bytes) -> None:
        if isinstance(source, bytes):
            if len(source) > self.limits.max_bytes:
                raise TooLarge(f"the image has {len(source)} bytes; the limit is {self.limits.byte_limit}")
            return
        match _scheme(source):
            case "data":
                check_data_url(source, self.limits)
            case "http" | "https":
                self._fetcher.check(source)
            case "":
                raise InvalidMedia("the image is not a URL; send https://..., or data:image/png;base64,...")
            case scheme:
                raise InvalidMedia(f"{scheme}: URLs are not read; send https://..., or data:image/png;base64,...")

    async def _encoded(self, ref: ImageRef, slots: asyncio.Semaphore, deadline: float) -> bytes:
        source = ref.source
        if isinstance(source, bytes):
            return source
        if _scheme(source) == "data":
            return await self._in_pool(lambda: decode_data_url(source, self.limits))
        async with slots:
            return await self._fetcher.fetch(source, deadline)

    def _check_pixels(self, files: Sequence[PictureFile]) -> None:
        pixels = sum(file.size.width * file.size.height for file in files)
        if pixels > self.limits.max_request_pixels:
            limit = f"the limit is {self.limits.max_request_pixels / 1e6:g} Mpx (media.max_request_pixels)"
            raise InvalidMedia(f"the request's images have {pixels / 1e6:.1f} Mpx together; {limit}")

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)


class _ByteBudget:
    """Counts the encoded bytes of one request."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise TooLarge(
                f"the request's images have more than {self._limit >> 20} MB together; send fewer or smaller ones"
            )


class _Blame:
    """Writes a reference's `param` into the RequestErrors that leave its block."""

    def __init__(self, ref: ImageRef) -> None:
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError) and error.param is None:
            error.param = self._ref.param


def _scheme(url: str) -> str:
    head, colon, _ = url[:_MAX_SCHEME_CHARS].partition(":")
    return head.lower() if colon and head.isascii() and head.replace("+", "").replace("-", "").isalnum() else ""


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results in order; the first failure stops the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(item) for item in work]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
