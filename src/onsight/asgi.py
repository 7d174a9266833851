"""The server as an application that starts itself, for other people's web servers: `uvicorn onsight.asgi:app`.

Settings come from the environment. Where it listens is the web server's business, so that it wants a key, or the clear
word ONSIGHT_NO_AUTH=true.
"""

from __future__ import annotations

import logging

from starlette.types import Receive, Scope, Send

from onsight.config import Settings, load_settings
from onsight.core.errors import StartError
from onsight.serve import Site, assemble, set_up_logging


class SelfStarting:
    """Loads the model when its web server starts, and lets running answers finish when that stops."""

    def __init__(self) -> None:
        self._site: Site | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._site is None:
            raise StartError("the web server did not start this application: leave its lifespan on")
        await self._site.app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            settings = _settings()
            set_up_logging(settings)
            # Ours alone is quiet about where it listens; here nobody else says it.
            logging.getLogger("uvicorn.error").setLevel(logging.INFO)
            site = assemble(settings)
            await site.start()
        except StartError as error:
            await send({"type": "lifespan.startup.failed", "message": f"onsight: {error}"})
            return
        self._site = site
        await send({"type": "lifespan.startup.complete"})
        await receive()
        site.admission.close()
        await site.admission.drained(settings.drain_timeout_s)
        await site.close()
        await send({"type": "lifespan.shutdown.complete"})


def _settings() -> Settings:
    settings = load_settings({})
    if settings.api_key is None and not settings.no_auth:
        raise StartError(
            "no key is set, and who can reach this is not known: set ONSIGHT_API_KEY, or ONSIGHT_NO_AUTH=true"
        )
    return settings


app = SelfStarting()
