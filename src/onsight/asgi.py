"""`uvicorn onsight.asgi:app`: the same application under a server program of another's, which listens and stops its own
way.

The settings come from the environment; `app` is made when it is first asked for, not when this module is imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI

from onsight.config import load_settings
from onsight.core.errors import OnsightError
from onsight.serve import assemble, prepare_process

_log = logging.getLogger("onsight")

_NOT_OURS = ("host", "port", "drain_timeout_s", "head_timeout_s", "keep_alive_s", "max_connections", "trusted_proxies")
"""Options that belong to the program which listens."""


@cache
def create() -> FastAPI:
    """The application; its model is loaded before the first request. Where it cannot be made, the process ends with
    one sentence and code 2, as `onsight serve` does."""

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncGenerator[None]:
        try:
            await site.start()
            yield
        finally:
            await site.close()

    try:
        settings = load_settings({})
        prepare_process(settings)
        for name in sorted(settings.model_fields_set.intersection(_NOT_OURS)):
            _log.warning("the option %s has no effect here: that is up to the program that listens", name)
        site = assemble(settings.with_retriever, lifespan=alive, with_page=True)
    except OnsightError as error:
        print(f"onsight: {error}", file=sys.stderr)
        sys.exit(2)
    return site.app


def __getattr__(name: str) -> FastAPI:
    if name == "app":
        return create()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
