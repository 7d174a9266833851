"""The composition root: settings -> engine -> tasks -> app -> a listening server. The only module that knows both
sides."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.progress import Progress as ProgressBar
from starlette.types import ASGIApp

from onsight.api.app import ApiSettings, Lifespan, Services, create_app
from onsight.api.keys import KeyBook, Scope
from onsight.api.metrics import Metrics
from onsight.api.not_yet import NOT_YET, answered_meanwhile
from onsight.api.rates import Rate
from onsight.api.request_log import log_request
from onsight.api.slow_heads import bounded_protocol
from onsight.api.traces import Traces
from onsight.config import LOOPBACK_HOSTS, MEGABYTE, Settings, tell_gradio
from onsight.core.engine import Engine, Progress
from onsight.core.errors import RequestError, StartError
from onsight.core.threads import start_loops_threads
from onsight.engine_choice import build_roster, with_room
from onsight.engines.machine import allow_open_files, keep_few_heaps
from onsight.index.collection import Collection, Place
from onsight.media.door import MediaDoor, MediaLimits
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.roster import Roster
from onsight.ui.desk import Workplace
from onsight.ui.page import Page

log = logging.getLogger("onsight")

_AT_WORK = 4
"""Media are opened for so many times the requests that an engine answers at once, so that it never waits for them."""

_UPLOADS = 8
"""So many times the largest body the page's uploads may have together."""

_LAST_BYTES_S = 5
"""After the last running answer, connections have at least so long for what is still on its way."""
_LAST_WORDS_S = 2.0
"""How long requests that are cut have to end with an error event."""


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that one process serves: started and closed together."""

    app: FastAPI
    chat: Chat
    roster: Roster
    admission: Admission
    door: MediaDoor
    metrics: Metrics
    page: Page | None = None
    index: Collection | None = None
    traces: Traces | None = None

    async def start(self) -> None:
        """Load every engine and, beside them, the page. Raises StartError."""
        beside = None if self.page is None else asyncio.create_task(self.page.start())
        try:
            for engine in self._engines:
                await engine.start()
            if self.index is not None:
                for loaded in self.roster.embedders:
                    await asyncio.to_thread(self.index.check, loaded.name, loaded.engine.space.dims)
            if beside is not None:
                await beside
        finally:
            if beside is not None:
                beside.cancel()

    async def close(self) -> None:
        if self.page is not None:
            await self.page.close()
        for engine in self._engines:
            await engine.close()
        if self.index is not None:
            self.index.close()
        self.door.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    def end_streams(self) -> None:
        """End what an open page keeps open for as long as it is shown."""
        if self.page is not None:
            self.page.end_streams()

    @property
    def _engines(self) -> list[Engine]:
        return [loaded.engine for loaded in self.roster.models]


def assemble(
    settings: Settings,
    progress: Progress | None = None,
    lifespan: Lifespan | None = None,
    *,
    with_page: bool = False,
) -> Site:
    """Put the parts together; nothing is loaded and no port is opened yet. `lifespan`: of the app, where another
    program starts and closes the site. Raises StartError for a model that is not there, a page that cannot be, or no
    folder for temporary files."""
    temporary_folder()
    roster = build_roster(settings, progress)
    door = MediaDoor(media_limits(settings))
    roomy = with_room(settings)
    admission = Admission(roomy.max_queue, _queue_limits(roomy))
    metrics = Metrics(roster, admission, door.decoded.cache)
    traces = None if settings.otlp_endpoint is None else Traces(settings.otlp_endpoint)
    bookkeepers = (metrics.record, log_request, *(() if traces is None else (traces.record,)))
    chat = Chat(roster, door, admission, bookkeepers)
    index = _index(settings, roster)
    embed = Embed(roster, door, admission, bookkeepers, settings.max_inputs, index)
    keys = KeyBook(settings.api_key, settings.keys_file)
    rate = None if settings.requests_per_min_key is None else Rate("key", settings.requests_per_min_key)
    count = None if rate is None or not keys.guards else rate.count
    uploads_bytes = _UPLOADS * settings.max_body_mb * MEGABYTE
    place = Workplace(roster, chat, embed, door, admission, count, uploads_bytes)
    page = _page(settings, place, keys) if with_page else None
    api = ApiSettings(
        keys=keys,
        allowed_hosts=_hosts(settings, listens=lifespan is None),
        origins=frozenset(settings.cors_origins),
        rate_by_key=rate,
        a_minute_by_address=settings.requests_per_min_address,
        max_body_bytes=settings.max_body_mb * MEGABYTE,
        body_timeout_s=settings.body_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        open_docs=settings.open_docs,
        open_metrics=settings.open_metrics,
        loopback_only=not (settings.no_auth or settings.api_key or settings.keys_file),
        page=page,
    )
    app = create_app(Services(roster, chat, embed, admission, metrics), api, lifespan)
    return Site(app, chat, roster, admission, door, metrics, page, index, traces)


def temporary_folder() -> Path:
    """Where temporary files go; PyTorch and the page do not start without. Raises StartError."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise StartError(
            "no folder for temporary files can be written to (TMPDIR, /tmp, /var/tmp): set TMPDIR to one that can; a"
            " container with a read-only file system gets one by `--tmpfs /tmp`"
        ) from None


def _index(settings: Settings, roster: Roster) -> Collection | None:
    """The index whose pages may be named by ids, if there is one. Raises StartError."""
    if settings.qdrant is None:
        return None
    if not roster.embedders:
        raise StartError("qdrant is set, but no model that makes vectors is served: name one, or leave qdrant out")
    return Collection(Place(settings.qdrant, settings.qdrant_collection, settings.qdrant_key))


def _page(settings: Settings, place: Workplace, keys: KeyBook) -> Page | None:
    """The page, unless it is not wanted, or nothing is said of it and Gradio is not there. Raises StartError."""
    is_here = importlib.util.find_spec("gradio") is not None
    if settings.ui and not is_here:
        raise StartError("the page needs Gradio, which is not installed: pip install 'onsight[ui]', or pass --no-ui")
    if settings.ui is False or not is_here:
        return None
    folder = Path(tempfile.mkdtemp(prefix="onsight-page-"))
    tell_gradio(folder)

    scopes: list[Scope] = ["chat"] if place.roster.chats else []
    scopes += ["embed"] if place.roster.embedders else []

    def name_of(key: str) -> str | None:
        caller = keys.find(key)
        return caller.name if caller is not None and all(map(caller.may, scopes)) else None

    return Page(place, folder, name_of if keys.guards else None)


def _hosts(settings: Settings, *, listens: bool) -> frozenset[str]:
    """Names that requests may use. Where we listen on loopback without keys, its name is the server's only guard.

    With keys, a proxy of this machine passes on whatever names it is called by. Where another program listens
    (`listens` is false), the address is its own, and `no_auth` lets everybody in.
    """
    keyed = settings.api_key is not None or settings.keys_file is not None
    open_to_all = settings.no_auth and not listens
    if settings.allowed_hosts or keyed or open_to_all or settings.host not in LOOPBACK_HOSTS:
        return frozenset(name.lower() for name in settings.allowed_hosts)
    return LOOPBACK_HOSTS


def _queue_limits(settings: Settings) -> QueueLimits:
    several = settings.keys_file is not None
    places_of_one = settings.max_queue_caller or (-(-settings.max_queue * 3 // 4) if several else settings.max_queue)
    return QueueLimits(
        places_of_one=places_of_one,
        at_work=_AT_WORK * settings.max_num_seqs,
        pixels=settings.max_queue_pixels,
        pixels_of_one=settings.max_queue_pixels * places_of_one // settings.max_queue,
        timeout_s=settings.request_timeout_s,
    )


def media_limits(settings: Settings) -> MediaLimits:
    """What the settings let in of pictures, PDFs and videos."""
    return MediaLimits(
        remote=settings.media_remote,
        allowed_hosts=settings.media_allowed_hosts,
        allowed_ports=settings.media_allowed_ports,
        max_bytes=settings.media_max_mb * MEGABYTE,
        max_pixels=settings.media_max_pixels,
        max_request_pixels=settings.media_max_request_pixels,
        max_images=settings.media_max_images,
        max_videos=settings.media_max_videos,
        max_video_bytes=settings.media_max_video_mb * MEGABYTE,
        max_video_s=settings.media_max_video_s,
        max_video_frames=settings.media_max_video_frames,
        max_video_pixels=settings.media_max_video_pixels,
        video_decode_s=settings.media_video_decode_s,
        pdf_dpi=settings.media_pdf_dpi,
        pdf_draw_s=settings.media_pdf_draw_s,
        fetch_timeout_s=settings.media_fetch_timeout_s,
        decode_workers=settings.media_workers,
        decoded_bytes=settings.media_cache_mb * MEGABYTE,
    )


def run(settings: Settings) -> None:
    """Serve until a signal: the first SIGTERM or SIGINT drains, a second one cuts. Without a model named, both bundled
    ones are served. The port is taken, and answers, before the model's files are looked for. Raises StartError."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    prepare_process(settings)
    with listen_on(settings) as listening, loading_bar() as progress:
        with answered_meanwhile(listening, _http(settings, NOT_YET, lambda _: None)):
            site = assemble(settings.with_retriever, progress, with_page=True)
        asyncio.run(listen_and_serve(site, settings, listening=listening))


def _end(number: int, frame: object) -> None:
    """What a signal does before `heeded`: a container's first process would not hear SIGTERM without. An exception
    would wait for the threads that download, and nothing is there yet that must be closed."""
    log.info("stopped before the model began to load")
    os._exit(0)


def prepare_process(settings: Settings) -> None:
    """What every process that serves does before all else: log, tell which options other servers' names in the
    environment set, take what the system gives."""
    set_up_logging(settings)
    for sentence in settings.taken:
        log.info("%s", sentence)
    allow_open_files()
    keep_few_heaps()


async def listen_and_serve(
    site: Site,
    settings: Settings,
    ready: Callable[[str], None] | None = None,
    listening: socket.socket | None = None,
) -> None:
    """Listen at once, so that /health and /ready can say "loading", and load beside it.

    `ready` is called with the address when the model is loaded; `listening` is what `listen_on` gave, if it was asked
    before. Raises StartError.
    """
    listening = listen_on(settings) if listening is None else listening
    config = _http(settings, site.app, site.metrics.refuse)
    server = DrainingServer(config, site.admission, settings.drain_timeout_s, site.end_streams)
    with heeded(server.stop):
        await _serve(site, server, listening, ready)


def _http(settings: Settings, app: ASGIApp, refused: Callable[[RequestError], None]) -> uvicorn.Config:
    """How connections are answered by `app`; `refused` is told of those that are turned away."""
    return uvicorn.Config(
        app,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=bounded_protocol(settings.head_timeout_s, settings.max_connections, refused),
        timeout_keep_alive=settings.keep_alive_s,
        h11_max_incomplete_event_size=64 * 1024,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )


async def _serve(
    site: Site, server: DrainingServer, listening: socket.socket, ready: Callable[[str], None] | None
) -> None:
    began_s = time.monotonic()
    host, port = listening.getsockname()[:2]
    start_loops_threads()
    serving = asyncio.create_task(server.serve([listening]))
    loading = asyncio.create_task(site.start())
    try:
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            # What is loaded stays. Else each full garbage collection would walk all of it and stall the event loop.
            gc.collect()
            gc.freeze()
            names = ", ".join(name for loaded in site.roster.models for name in loaded.names)
            log.info("ready in %.1f s: %s on http://%s:%d", time.monotonic() - began_s, names, host, port)
            if ready is not None:
                ready(f"http://{host}:{port}")
        # Waited for so that a cancelled caller leaves it running until it is told to stop.
        await asyncio.wait({serving})
        serving.result()
    finally:
        server.should_exit = True
        loading.cancel()
        await asyncio.wait({serving, loading})
        await site.close()
        # The engines told their requests that they are closed; these tell their clients before the loop is left.
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=_LAST_WORDS_S)


def listen_on(settings: Settings) -> socket.socket:
    """The listening socket, opened before anything loads, so that a taken port is known at once. Raises StartError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
        # Accepted connections inherit it; asyncio sets it only on sockets that it opened itself. Without it a streamed
        # piece may wait 40 ms for the client's acknowledgement of the one before.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            # Who takes nothing of an answer for so long is gone; else its place in the queue would never be free.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.send_timeout_s * 1000))
        return listening
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another --host or --port"
        ) from None


class DrainingServer(uvicorn.Server):
    """Uvicorn that, on the first signal, refuses new requests, lets running ones finish, and exits with code 0."""

    def __init__(
        self, config: uvicorn.Config, admission: Admission, drain_timeout_s: float, end_streams: Callable[[], None]
    ) -> None:
        """`end_streams` ends those answers that would have no end; it is called when all others have ended."""
        super().__init__(config)
        self._admission = admission
        self._drain_timeout_s = drain_timeout_s
        self._until_s: float | None = None
        self._end_streams = end_streams
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again at the end and so never exits with 0; see `heeded`."""
        yield

    def stop(self) -> None:
        """Drain when called first, cut what runs when called again."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._admission.close()
        log.info(
            "stopping: %d running answers may finish (at most %.0f s)", self._admission.taken, self._drain_timeout_s
        )
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + self._drain_timeout_s
        self._draining = loop.create_task(self._drain())

    async def _drain(self) -> None:
        if not await self._admission.drained(self._drain_timeout_s):
            log.warning("%d answers did not finish in time and are cut", self._admission.taken)
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, with an end: it would wait for each connection's answer, however long that takes."""
        self._end_streams()
        now_s = asyncio.get_running_loop().time()
        left_s = (self._until_s or now_s + self._drain_timeout_s) - now_s
        self.config.timeout_graceful_shutdown = max(_LAST_BYTES_S, math.ceil(left_s))
        await super().shutdown(sockets)


@contextmanager
def heeded(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at each SIGINT and SIGTERM, until all is closed: one that comes late must not cut the closing.

    In a thread beside the main one, signals are the business of whoever started it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def loading_bar() -> Iterator[Progress]:
    """A progress bar on standard error while weights load; nothing where that is no terminal."""
    console = Console(stderr=True)
    bar = ProgressBar(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("loading weights", total=None)

    def progress(done: int, total: int) -> None:
        # Begun with the first tensor: a download before it has bars of its own.
        bar.start()
        bar.update(task, completed=done, total=total, visible=done < total)
        if done >= total:
            bar.stop()

    try:
        yield progress
    finally:
        bar.stop()


class _JsonLines(logging.Formatter):
    """Log records as one JSON object a line, with what they carry under `fields` as fields of their own; JSON in ASCII
    escapes all line breaks, so that no value can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **record.__dict__.get("fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(settings: Settings) -> None:
    """Send every log line to standard error in the asked format."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else plain)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "filelock", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # What Pillow says of a hostile file is told to its sender; its own lines would only fill the log.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
