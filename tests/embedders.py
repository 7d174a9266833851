"""An application, as that of a tiny ColQwen2.5, behind a real server of this process on a port of loopback."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from PIL import Image as Pillow

from onsight.config import Settings
from onsight.core.messages import Image
from onsight.serve import assemble


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The test run's own signal handlers stay."""
        yield


@contextmanager
def served_embedder(folder: Path, name: str = "pages", **settings: object) -> Iterator[str]:
    """Serve the model in `folder` as `name`, on a thread of its own; its address."""
    site = assemble(Settings(model=str(folder), served_model_name=(name,), device="cpu", threads=1, **settings))
    with behind_a_port(site.app, site.start, site.close) as address:
        yield address


async def _nothing() -> None: ...


@contextmanager
def behind_a_port(
    app: FastAPI, start: Callable[[], Awaitable[None]] = _nothing, close: Callable[[], Awaitable[None]] = _nothing
) -> Iterator[str]:
    """Serve `app` on a thread of its own, between `start` and `close`; its address."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
    server, ready = _Server(config), threading.Event()

    async def serve() -> None:
        await start()
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await serving
        await close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(60), "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def png(image: Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    Pillow.frombytes("RGB", (image.width, image.height), image.pixels).save(file, "PNG")
    return file.getvalue()
