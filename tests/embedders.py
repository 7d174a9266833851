"""A tiny ColQwen2.5 behind a real server of this process, on a port of the loopback interface."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
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
    config = uvicorn.Config(site.app, port=0, log_config=None, access_log=False, lifespan="off")
    server, ready = _Server(config), threading.Event()

    async def serve() -> None:
        await site.start()
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await serving
        await site.close()

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
