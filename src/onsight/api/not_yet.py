"""What a server answers before it knows its model: 503, while the model's files are looked for and downloaded."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

import uvicorn
from uvicorn.server import ServerState

from onsight.api.errors import error_answer, error_response
from onsight.core.errors import Unavailable

_ERROR = Unavailable("the model's files are being looked for, or downloaded; try again soon", retry_after_s=5)
_BODY = {"status": "loading", "models": {}, **error_answer(_ERROR).model_dump()}

NOT_YET = error_response(_ERROR, json.dumps(_BODY).encode())
"""ASGI application: the same answer to all, that of /ready while a model loads."""
NOT_YET.headers["connection"] = "close"

_LAST_ANSWERS_S = 1.0


@contextmanager
def answered_meanwhile(listening: socket.socket, config: uvicorn.Config) -> Iterator[None]:
    """Answer what comes to `listening` as `config` says, in a thread, until the end of the block; it stays open."""
    ended: Future[None] = Future()
    answering = partial(asyncio.run, _answer(listening.dup(), config, ended))
    thread = threading.Thread(target=answering, name="onsight-not-yet", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set_result(None)
        thread.join()


async def _answer(listening: socket.socket, config: uvicorn.Config, ended: Future[None]) -> None:
    config.load()
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]

    # uvicorn's own server looks ten times a second whether it should end, which would delay every start.
    server = await asyncio.get_running_loop().create_server(protocol, sock=listening, backlog=config.backlog)
    await asyncio.wrap_future(ended)
    server.close()
    if state.tasks:
        await asyncio.wait(state.tasks, timeout=_LAST_ANSWERS_S)
    for connection in list(state.connections):
        connection.shutdown()
