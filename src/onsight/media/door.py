"""The media door: each picture, PDF and video of a request is fetched, checked and decoded, or refused by name."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpcore

from onsight.core.errors import InvalidMedia, InvalidRequest, RequestError, TooLarge
from onsight.core.frames import FrameRule
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageRef, Video, VideoRef
from onsight.core.threads import started_pool
from onsight.core.together import together
from onsight.core.turns import Turns
from onsight.media.containers import PictureFile
from onsight.media.data_url import check_data_url, data_url_head, decode_data_url
from onsight.media.decode_child import DecodeChild
from onsight.media.decoded import DecodedPictures
from onsight.media.fetch import LOOKUPS_AT_ONCE, Fetcher, Resolver, system_resolver
from onsight.media.image import read_header
from onsight.media.limits import Kind, MediaLimits
from onsight.media.pdf import BadPage, PdfFile, draw_pdf, is_pdf, read_pdf
from onsight.media.video import Clip, decode_clip, read_clip

__all__ = ["MediaDoor", "MediaLimits"]

_FETCHES_AT_ONCE = 6
_MAX_SCHEME_CHARS = 20
_NICENESS = 5
_HEAD_BYTES = 12 << 10
"""Of a picture, to learn its size from before it is opened; enough for all but JPEGs with much before the picture."""

_VIDEO_CODE = "invalid_video"

T = TypeVar("T")
Ref = TypeVar("Ref", ImageRef, VideoRef)
File = TypeVar("File")

Opened = tuple[Image, ...]
"""What one reference became: a picture, or the pages of a PDF."""

HoldPixels = Callable[[int], Awaitable[None]]
"""Called with the px of a request's pictures, or of its videos' frames, before any is decoded; raises to refuse."""


async def _any_number(pixels: int) -> None:
    """Where nobody counts."""


class MediaDoor:
    """Opens references to pictures and videos. One for the whole server; its threads are shared by all requests, whose
    callers take turns.

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
        self._decoders = started_pool(self.limits.decode_workers, "onsight-decode", _give_way)
        self._turns = Turns(self.limits.decode_workers)
        self._child = DecodeChild()
        self.decoded = DecodedPictures(self.limits.decoded_bytes, self._child)
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "onsight-lookup")
        self._fetcher = Fetcher(self.limits, resolver or system_resolver(self._lookups), network, certificates)

    async def open(self, refs: Sequence[ImageRef]) -> tuple[Image, ...]:
        """Turn all picture references of one request into checked pictures, in order, with their options.

        None of `refs` may welcome a PDF, which `open_pages` is for. See there for the rest.
        """
        return tuple(image for (image,) in await self.open_pages(refs))

    async def open_pages(
        self, refs: Sequence[ImageRef], hold: HoldPixels = _any_number, caller: str = ""
    ) -> tuple[Opened, ...]:
        """Turn all references of one request into checked pictures, one for a picture and one a page for a PDF.

        Raises InvalidMedia, TooLarge, TimedOut, Unsupported, or InvalidRequest for pages that a PDF lacks and for too
        large bounds in px, with the `param` of the reference at fault. When one is refused, or the caller is cancelled,
        the other fetches stop.
        Nothing is decoded before all headers are known and allowed; `hold` is told their px then, and may refuse.
        `caller`: who asks, as those who wait take turns.
        """
        self._check(refs, "image")
        files = await self._read(refs, "image", caller, lambda ref, data: _whole_file(self._look(ref, data)))
        await hold(self._check_pixels(refs, files))
        return await self._decode(refs, files, caller, lambda ref, file: _whole(self._draw(ref, file, by_page=False)))

    async def open_by_page(
        self, ref: ImageRef, hold: HoldPixels = _any_number, caller: str = ""
    ) -> tuple[Image | BadPage, ...]:
        """As `open_pages` for one reference, but a page of a PDF that cannot be shown is a BadPage in its place."""
        self._check((ref,), "image")
        files = await self._read((ref,), "image", caller, self._look)
        await hold(self._check_pixels((ref,), files))
        (opened,) = await self._decode((ref,), files, caller, lambda ref, file: self._draw(ref, file, by_page=True))
        for page in opened:
            if isinstance(page, BadPage):
                page.error.param = ref.param
        return opened

    def known_pixels(self, refs: Sequence[ImageRef]) -> int:
        """The px of those pictures that came with the request, as far as their first bytes tell.

        Little work, so that it can be done before any other; what is wrong with a picture, `open_pages` says.
        """
        return sum(self._known_pixels(ref.source) for ref in refs[: self.limits.max_images])

    def _known_pixels(self, source: str | bytes) -> int:
        try:
            if isinstance(source, bytes):
                size = read_header(source[:_HEAD_BYTES], self.limits).size
            elif _scheme(source) == "data":
                size = read_header(data_url_head(source, _HEAD_BYTES), self.limits).size
            else:
                return 0
        except InvalidMedia:
            return 0
        return size.width * size.height

    def _look(self, ref: ImageRef, data: bytes) -> PictureFile | PdfFile:
        """Read a picture's or a PDF's header, whichever it is by its bytes."""
        if not is_pdf(data):
            if ref.pages is not None and ref.pages.spans:
                raise InvalidRequest(
                    "pages are asked for, but this is a picture; leave them out", param=ref.pages.param
                )
            return read_header(data, self.limits)
        if ref.pages is None:
            raise InvalidMedia("this is a PDF, and only a picture will do here; send one of its pages as a picture")
        return read_pdf(data, ref.pages, ref.options, self.limits, self._child)

    def _draw(self, ref: ImageRef, file: PictureFile | PdfFile, *, by_page: bool) -> tuple[Image | BadPage, ...]:
        if isinstance(file, PdfFile):
            return draw_pdf(file, ref.options, self.limits, self.decoded.cache, self._child, by_page)
        return (self.decoded.decode(file, ref.options),)

    async def open_videos(
        self, refs: Sequence[VideoRef], rule: FrameRule, hold: HoldPixels = _any_number, caller: str = ""
    ) -> tuple[Video, ...]:
        """Turn all video references of one request into the frames that `rule` and their options pick; see `open`.

        Raises InvalidRequest too, for options that cannot be honoured.
        """
        self._check(refs, "video")
        clips = await self._read(
            refs, "video", caller, lambda ref, data: read_clip(data, rule, ref.options, self.limits, self._child)
        )
        await hold(self._check_video_pixels(refs, clips))
        return await self._decode(refs, clips, caller, lambda ref, clip: decode_clip(clip, self.limits, self._child))

    async def _read(self, refs: Sequence[Ref], kind: Kind, caller: str, work: Callable[[Ref, bytes], T]) -> list[T]:
        """What `work`, done in the pool, reads from each reference's bytes."""
        slots = asyncio.Semaphore(_FETCHES_AT_ONCE)
        deadline = asyncio.get_running_loop().time() + self.limits.fetch_timeout_s
        budget = _ByteBudget(max(self.limits.max_request_bytes, self.limits.bytes_of(kind)), kind)

        async def read(ref: Ref) -> T:
            with _Blame(ref):
                source = ref.source
                if isinstance(source, bytes):
                    data = source
                elif _scheme(source) == "data":
                    data = await self._in_pool(caller, lambda: decode_data_url(source, self.limits, kind))
                else:
                    async with slots:
                        data = await self._fetcher.fetch(source, deadline, kind, caller)
                budget.take(len(data))
                return await self._in_pool(caller, lambda: work(ref, data))

        return await together(read(ref) for ref in refs)

    async def _decode(
        self, refs: Sequence[Ref], files: Sequence[File], caller: str, work: Callable[[Ref, File], T]
    ) -> tuple[T, ...]:
        async def decode(ref: Ref, file: File) -> T:
            with _Blame(ref):
                return await self._in_pool(caller, lambda: work(ref, file))

        return tuple(await together(decode(ref, file) for ref, file in zip(refs, files, strict=True)))

    def close(self) -> None:
        """Stop the threads and the child; what still waits to be decoded is dropped. May be called twice."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._child.close()

    def _check(self, refs: Sequence[ImageRef] | Sequence[VideoRef], kind: Kind) -> None:
        """Refuse whatever can be refused by looking at counts, lengths and the beginnings of URLs."""
        most = self.limits.max_images if kind == "image" else self.limits.max_videos
        if len(refs) > most:
            limit = f"the limit is {most} (media.max_{kind}s)"
            with _Blame(refs[most]):
                raise InvalidMedia(f"the request has {len(refs)} {kind}s; {limit}")
        for ref in refs:
            if isinstance(ref, ImageRef):
                self.limits.check_options(ref.options, ref.param)
            with _Blame(ref):
                self._check_source(ref.source, kind)

    def _check_source(self, source: str | bytes, kind: Kind) -> None:
        if isinstance(source, bytes):
            if len(source) > self.limits.bytes_of(kind):
                raise TooLarge(f"the {kind} has {len(source)} bytes; the limit is {self.limits.byte_limit(kind)}")
            return
        example = "data:image/png;base64,..." if kind == "image" else "data:video/mp4;base64,..."
        match _scheme(source):
            case "data":
                check_data_url(source, self.limits, kind)
            case "http" | "https":
                self._fetcher.check(source, kind)
            case "":
                raise InvalidMedia(f"the {kind} is not a URL; send https://..., or {example}")
            case scheme:
                raise InvalidMedia(f"{scheme}: URLs are not read; send https://..., or {example}")

    def _check_pixels(self, refs: Sequence[ImageRef], files: Sequence[PictureFile | PdfFile]) -> int:
        """Hold the sums of all pictures and pages against the limits; their px."""
        sizes: list[Size] = []
        for ref, file in zip(refs, files, strict=True):
            sizes += [size for _, size in file.good] if isinstance(file, PdfFile) else [file.size]
            if len(sizes) > self.limits.max_images:
                limit = f"the limit is {self.limits.max_images} (media.max_images)"
                with _Blame(ref):
                    raise InvalidMedia(f"the request has {len(sizes)} or more pictures and pages; {limit}")
        pixels = sum(size.width * size.height for size in sizes)
        if pixels > self.limits.max_request_pixels:
            limit = f"the limit is {self.limits.max_request_pixels / 1e6:g} Mpx (media.max_request_pixels)"
            raise InvalidMedia(f"the request's images have {pixels / 1e6:.1f} Mpx together; {limit}")
        return pixels

    def _check_video_pixels(self, refs: Sequence[VideoRef], clips: Sequence[Clip]) -> int:
        pixels = sum(clip.pixels for clip in clips)
        if pixels <= self.limits.max_video_pixels:
            return pixels
        frames = sum(len(clip.picks) for clip in clips)
        limit = f"the limit is {self.limits.max_video_pixels / 1e6:g} Mpx (media.max_video_pixels)"
        with _Blame(refs[0]):
            raise InvalidMedia(
                f"the {frames} frames to look at have {pixels / 1e6:.1f} Mpx together; {limit}: ask for fewer"
                " (max_frames), or send a smaller video"
            )

    async def _in_pool(self, caller: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await self._turns.through(caller, lambda: loop.run_in_executor(self._decoders, work))


def _whole_file(file: PictureFile | PdfFile) -> PictureFile | PdfFile:
    """The same. Raises InvalidMedia when any page that is asked for cannot be drawn."""
    if isinstance(file, PdfFile):
        _whole(tuple(page for page in file.pages if isinstance(page, BadPage)))
    return file


def _whole(pages: tuple[Image | BadPage, ...]) -> Opened:
    """The pictures. Raises the first bad page's error."""
    for page in pages:
        if isinstance(page, BadPage):
            raise page.error
    return tuple(page for page in pages if isinstance(page, Image))


def _give_way() -> None:
    """On a decoder's thread: let the event loop have the processor whenever it wants it.

    On Linux, where each thread has a niceness of its own.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _ByteBudget:
    """Counts the encoded bytes of one request."""

    def __init__(self, limit: int, kind: Kind) -> None:
        self._limit = limit
        self._left = limit
        self._kind = kind

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise TooLarge(
                f"the request's {self._kind}s have more than {self._limit >> 20} MB together;"
                " send fewer or smaller ones"
            )


class _Blame:
    """Writes a reference's `param` into the RequestErrors that leave its block, and a video's own code."""

    def __init__(self, ref: ImageRef | VideoRef) -> None:
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError) and error.param is None:
            error.param = self._ref.param
        if isinstance(error, InvalidMedia) and isinstance(self._ref, VideoRef):
            error.code = _VIDEO_CODE


def _scheme(url: str) -> str:
    head, colon, _ = url[:_MAX_SCHEME_CHARS].partition(":")
    return head.lower() if colon and head.isascii() and head.replace("+", "").replace("-", "").isalnum() else ""
