"""RunPod serverless: every job becomes a request to the server in this process, or to the one of API_BASE_URL.

A job's `input` has one of three forms: a picture and a question (`image_url` or `image`, `text`, and any field of a
chat request), a chat request (`messages`, ...), or `openai_route` with `openai_input`. The first two are answered with
`{"status": "success", "output": ...}` or `{"status": "failed", "error": "..."}`, the third with what the route says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeGuard

import httpx

from onsight.config import Settings, load_settings, load_worker_settings, takes_runpod_jobs
from onsight.core.errors import InvalidRequest, OnsightError, StartError
from onsight.serve import assemble, listen_and_serve, prepare_process, set_up_logging

log = logging.getLogger("onsight.runpod")

Item = Mapping[str, object] | list[object] | str
"""One thing that a job yields; a plain answer is the only one of its job."""

CHAT = "/v1/chat/completions"
SIMPLE_TEXT = "Describe this image"

_ROUTE = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
# A job has been taken off RunPod's queue, so a full queue of ours is waited for, but not for ever.
_PATIENCE_S = 60.0
_JSON = {"content-type": "application/json"}
_ENDS = {"text/event-stream": "\n\n", "application/x-ndjson": "\n"}
"""How the pieces of a stream end, by its media type."""
_NO_JSON = "the input has NaN, an infinity or half a character (a lone surrogate), which the server does not take"


@dataclass(frozen=True, slots=True)
class Asked:
    """One job as a request. `plain`: it is answered as the route answers, without `status` and `output`."""

    path: str
    body: Mapping[str, object] | None
    plain: bool = False

    def answered(self, answer: object) -> Item:
        """The route's JSON as what the job yields."""
        if self.plain and isinstance(answer, dict | list):
            return answer
        return {"status": "success", "output": answer}

    def failed(self, error: Mapping[str, object]) -> Item:
        """OpenAI's error object as what the job yields; RunPod takes whatever has `error` for a failed job."""
        return {"error": error} if self.plain else failure(str(error.get("message", error)))


def failure(message: str) -> Item:
    return {"status": "failed", "error": message}


def read_job(job: Mapping[str, object]) -> Asked:
    """The request that a job's `input` stands for; what it holds is checked by the server. Raises InvalidRequest."""
    given = job.get("input")
    if not _is_object(given):
        raise InvalidRequest("the job's `input` should be a JSON object")
    # What forms send for a field that was left empty.
    given = {name: value for name, value in given.items() if value is not None}
    if "openai_route" in given:
        return _routed(given)
    if "messages" in given:
        return Asked(CHAT, given)
    if "image_url" in given or "image" in given:
        return Asked(CHAT, _simple(given))
    raise InvalidRequest(
        "the input should have `image_url` (or `image`) and `text`, or `messages`,"
        " or `openai_route` with `openai_input`"
    )


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def _routed(given: Mapping[str, object]) -> Asked:
    route, body = given["openai_route"], given.get("openai_input")
    if not isinstance(route, str) or not _ROUTE.fullmatch(route):
        raise InvalidRequest(f"openai_route is {str(route)[:60]!r}; send a path like {CHAT}")
    if extra := sorted(given.keys() - {"openai_route", "openai_input"}):
        raise InvalidRequest(f"`{extra[0]}` cannot stand beside openai_route; put it into openai_input")
    if route == "/v1/models" or route.startswith("/v1/models/"):
        return Asked(route, None, plain=True)
    if not _is_object(body):
        raise InvalidRequest(f"openai_input should be a JSON object, the body of {route}")
    return Asked(route, body, plain=True)


def _simple(given: Mapping[str, object]) -> Mapping[str, object]:
    """The chat request of one picture and one question; every other field goes along as it is."""
    rest = dict(given)
    pictures = [(name, rest.pop(name)) for name in ("image_url", "image") if name in given]
    if len(pictures) != 1:
        raise InvalidRequest("send the picture once, as `image_url` or as `image`")
    match pictures[0]:
        case name, str(text) if text.startswith(("http://", "https://", "data:")) or name == "image_url":
            part: Mapping[str, object] = {"type": "image_url", "image_url": {"url": text}}
        case _, str(text):
            part = {"type": "image", "image": {"b64": text}}
        case _:
            raise InvalidRequest("the picture should be a text: a URL, data:image/png;base64,... or base64")
    question = {"type": "text", "text": rest.pop("text", SIMPLE_TEXT)}
    return {"max_tokens": 512, **rest, "messages": [{"role": "user", "content": [part, question]}]}


class Worker:
    """Answers jobs by asking the server at `address`; without one, `broken` says why every job fails.

    `dead` is called when that server, which is this process's own, will never answer again. Raises StartError for an
    address that is none.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        broken: str | None = None,
        dead: Callable[[], None] | None = None,
    ) -> None:
        self._broken = broken
        self._dead = dead
        try:
            whole = broken is not None or httpx.URL(address).host != ""
        except httpx.InvalidURL:
            whole = False
        if not whole:
            raise StartError(f"API_BASE_URL is {address!r}: set it to an address like http://127.0.0.1:8000")
        # The address is our own or the operator's, so no proxy of the environment stands between.
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(10, read=None, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def answer(self, job: Mapping[str, object]) -> AsyncGenerator[Item, None]:
        """What the job yields: a plain answer as one item, a stream piece by piece. Closing it stops the request."""
        if self._broken is not None:
            yield failure(self._broken)
            return
        try:
            asked = read_job(job)
        except InvalidRequest as error:
            yield failure(error.message)
            return
        try:
            async with aclosing(self._ask(asked)) as items:
                async for item in items:
                    yield item
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            await self._look_whether_dead()
            yield asked.failed({"message": f"the server broke off or cannot be reached ({type(error).__name__})"})

    async def answer_whole(self, job: Mapping[str, object]) -> Item:
        """As `answer`, collected: RunPod's test of one job does not run a generator."""
        async with aclosing(self.answer(job)) as items:
            collected: list[object] = [item async for item in items]
        match collected:
            case [dict(only)]:
                return only
            case _:
                return collected

    async def _ask(self, asked: Asked) -> AsyncGenerator[Item, None]:
        method, waited_s = "GET" if asked.body is None else "POST", 0.0
        try:
            body = None if asked.body is None else json.dumps(asked.body, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:
            yield asked.failed({"message": _NO_JSON, "type": "invalid_request_error", "param": None, "code": None})
            return
        while True:
            async with self._client.stream(method, asked.path, content=body, headers=_JSON) as response:
                told = response.headers.get("retry-after", "")
                busy_s = float(told) if told.isdigit() else 1.0
                busy = response.status_code == 429 or (
                    response.status_code == 503 and not await self._look_whether_dead()
                )
                if not busy or waited_s + busy_s > _PATIENCE_S:
                    last: Item = ""
                    async with aclosing(_items(asked, response)) as items:
                        async for last in items:
                            yield last
                    if '"error"' in last if isinstance(last, str) else "error" in last:
                        await self._look_whether_dead()
                    return
            await asyncio.sleep(busy_s)
            waited_s += busy_s

    async def _look_whether_dead(self) -> bool:
        """Whether an engine of this process's own server is dead, or the server itself; `dead` is told."""
        if self._dead is None:
            return False
        try:
            states = (await self._client.get("/ready", timeout=10)).json()["models"]
        except httpx.ConnectError:
            states = {"the server": "dead"}
        except httpx.HTTPError:
            return False
        if "dead" not in states.values():
            return False
        self._dead()
        return True


async def _items(asked: Asked, response: httpx.Response) -> AsyncGenerator[Item, None]:
    """What the job yields for the server's answer."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream" or (asked.plain and kind in _ENDS):
        pieces = _whole_pieces(response, _ENDS[kind]) if asked.plain else _chunks(asked, response)
        async with aclosing(pieces):
            async for item in pieces:
                yield item
        return
    body = await response.aread()
    if asked.plain and response.status_code == 200 and kind.startswith("text/"):
        yield response.text
        return
    try:
        answer = json.loads(body)
    except ValueError:
        yield asked.failed({"message": f"the server answered {response.status_code} and no JSON"})
        return
    if response.status_code == 200:
        yield asked.answered(answer)
    else:
        yield asked.failed(_error_in(answer) or {"message": f"the server answered {response.status_code}"})


def _error_in(answer: object) -> Mapping[str, object] | None:
    """OpenAI's error object in an answer or an event."""
    error = answer.get("error") if _is_object(answer) else None
    return error if _is_object(error) else None


async def _whole_pieces(response: httpx.Response, end: str) -> AsyncGenerator[Item, None]:
    """The stream's text as it comes, never cut inside an event or a line, which `end` ends; what came while RunPod took
    the last is one item."""
    waiting = ""
    async for text in response.aiter_text():
        whole, ended, waiting = (waiting + text).rpartition(end)
        if ended:
            yield whole + ended
    if waiting:
        yield waiting


async def _chunks(asked: Asked, response: httpx.Response) -> AsyncGenerator[Item, None]:
    """One item a chunk."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data: "))
        error = _error_in(chunk)
        yield asked.answered(chunk) if error is None else asked.failed(error)


class Inside:
    """The server in this process: on a free loopback port, in a thread of its own, with its own event loop.

    Names and keys of clients do not concern it: whoever may send a job is RunPod's business.
    """

    def __init__(self, settings: Settings) -> None:
        ours: dict[str, object] = {"host": "127.0.0.1", "port": 0, "allowed_hosts": (), "keys_file": None}
        self._settings = settings.model_copy(update=ours)
        self._address: Future[str] = Future()
        self._cancel: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name="onsight-server", daemon=True)

    def start(self) -> str:
        """Load the model and listen; the address. Raises StartError."""
        self._thread.start()
        return self._address.result()

    def close(self) -> None:
        """Cut what still runs, and wait until the engine has closed."""
        if self._thread.is_alive() and self._cancel is not None:
            self._cancel()
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OnsightError as error:
            self._address.set_exception(error)
        finally:
            if not self._address.done():
                self._address.set_exception(StartError("the server ended before it was ready; the log says why"))

    async def _serve(self) -> None:
        loop, serving = asyncio.get_running_loop(), asyncio.current_task()
        if serving is not None:
            self._cancel = lambda: loop.call_soon_threadsafe(serving.cancel)
        with suppress(asyncio.CancelledError):
            await listen_and_serve(assemble(self._settings), self._settings, self._address.set_result)


@contextmanager
def serverless_worker() -> Iterator[dict[str, object]]:
    """What `runpod.serverless.start` wants; the model is loaded before, and closed at the end of the block.

    A server that cannot start does not end the process, which RunPod would start again and again: the log has the
    reason, and so has the answer to every job. One whose engine dies later is replaced: `refresh_worker` tells RunPod.
    """
    inside: Inside | None = None
    places = 1
    told: dict[str, object] = {}

    def refresh() -> None:
        log.error("the engine is dead: RunPod is asked for a new worker")
        told["refresh_worker"] = True

    set_up_logging(load_settings({}, environment={}))
    try:
        chosen = load_worker_settings()
        prepare_process(chosen.server)
        places = chosen.server.max_queue
        address = chosen.forward_to
        if address is None:
            inside = Inside(chosen.server.with_retriever)
            address = inside.start()
        worker = Worker(address, chosen.server.api_key, dead=None if inside is None else refresh)
    except StartError as error:
        log.error("the server did not start: %s", error)
        worker = Worker("", broken=f"the server did not start: {error}")
    try:
        many = takes_runpod_jobs() or "--rp_serve_api" in sys.argv
        told.update(
            handler=worker.answer if many else worker.answer_whole,
            concurrency_modifier=lambda _current: places,
            return_aggregate_stream=True,
        )
        yield told
    finally:
        if inside is not None:
            inside.close()
