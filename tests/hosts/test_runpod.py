"""A job of RunPod is answered as the server answers: every form of input, streams, refusals, and a failed start."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
import resource
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image as Pillow
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from onsight.config import Settings, load_worker_settings, takes_runpod_jobs
from onsight.core.errors import InvalidRequest, StartError
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.hosts.runpod import CHAT, Asked, Inside, Item, Worker, read_job, serverless_worker
from tests.embedders import behind_a_port
from tests.media.pictures import data_url, encoded, plain

PICTURE = data_url(plain(size=(32, 24)))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    inside = Inside(Settings(engine="fake", max_body_mb=1, media_max_mb=1, media_max_pixels=10_000))
    yield inside.start()
    inside.close()


async def ask(worker: Worker, given: object) -> list[Item]:
    async with aclosing(worker.answer({"id": "1", "input": given})) as items:
        return [item async for item in items]


def said(item: Item) -> str:
    match item:
        case {"status": "success", "output": {"choices": [{"message": {"content": str(text)}}]}}:
            return text
    raise AssertionError(item)


def complaint(items: list[Item]) -> str:
    (item,) = items
    assert isinstance(item, dict)
    assert item["status"] == "failed"
    return str(item["error"])


@pytest.mark.parametrize(
    "picture",
    [
        {"image_url": PICTURE},
        {"image": PICTURE},
        {"image": PICTURE.partition(",")[2]},
        {"image": PICTURE.partition(",")[2], "image_url": None, "messages": None, "openai_route": None},
    ],
)
async def test_a_picture_and_a_question_are_answered_in_the_old_envelope(
    address: str, picture: dict[str, object]
) -> None:
    (item,) = await ask(Worker(address), {**picture, "text": "what is it?"})
    assert said(item).startswith("fake engine: what is it? [32x24]")


def test_a_picture_alone_is_described_in_512_tokens() -> None:
    asked = read_job({"input": {"image_url": "http://a/b.png", "temperature": 0}})
    parts = [
        {"type": "image_url", "image_url": {"url": "http://a/b.png"}},
        {"type": "text", "text": "Describe this image"},
    ]
    body = {"max_tokens": 512, "temperature": 0, "messages": [{"role": "user", "content": parts}]}
    assert asked == Asked(CHAT, body)
    empty = {"image_url": "http://a/b.png", "image": None, "text": None, "max_tokens": None, "temperature": 0}
    assert read_job({"input": empty}) == asked


async def test_a_chat_request_is_answered_whole_or_chunk_by_chunk(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    worker = Worker(address)
    (whole,) = await ask(worker, body)
    chunks = await ask(worker, {**body, "stream": True})
    pieces = []
    for chunk in chunks:
        assert isinstance(chunk, dict)
        assert chunk["status"] == "success"
        pieces += [choice["delta"].get("content") or "" for choice in chunk["output"]["choices"]]
    assert len(chunks) > 3
    assert "".join(pieces) == said(whole)


async def test_an_openai_route_answers_as_itself_and_streams_events_that_are_never_cut(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    worker = Worker(address)
    (whole,) = await ask(worker, {"openai_route": CHAT, "openai_input": body})
    assert isinstance(whole, dict)
    text = whole["choices"][0]["message"]["content"]
    pieces = await ask(worker, {"openai_route": CHAT, "openai_input": {**body, "stream": True}})
    assert all(isinstance(piece, str) and piece.endswith("\n\n") for piece in pieces)
    events = "".join(str(piece) for piece in pieces).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text


def answering(body: bytes, media_type: str) -> FastAPI:
    """A server of which every route answers so, in pieces."""

    async def answer(request: Request) -> Response:
        assert await request.json() == {"stream": True}

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 7):
                yield body[start : start + 7]
                await asyncio.sleep(0.001)

        return StreamingResponse(pieces(), media_type=media_type)

    return FastAPI(routes=[Route("/{path:path}", answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("media_type", "end"), [("application/x-ndjson", "\n"), ("text/plain; charset=utf-8", "e"), ("text/csv", "e")]
)
async def test_an_openai_route_answers_with_lines_of_json_and_other_texts_too(media_type: str, end: str) -> None:
    body = '{"index": 0, "text": "é"}\n{"index": 1}\n' if end == "\n" else "one\n\n1\n\nthree"
    given = {"openai_route": "/v1/embeddings", "openai_input": {"stream": True}}
    with behind_a_port(answering(body.encode(), media_type)) as address:
        pieces = await ask(Worker(address), given)
    assert "".join(map(str, pieces)) == body
    assert all(isinstance(piece, str) and piece.endswith(end) for piece in pieces)


async def test_models_and_the_other_routes_are_there_too(address: str) -> None:
    worker = Worker(address)
    (models,) = await ask(worker, {"openai_route": "/v1/models", "openai_input": {}})
    assert isinstance(models, dict)
    assert models["data"][0]["object"] == "model"
    (answer,) = await ask(worker, {"openai_route": "/v1/responses", "openai_input": {"input": "hello"}})
    assert isinstance(answer, dict)
    assert answer["object"] == "response"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "should be a JSON object"),
        ("hello", "should be a JSON object"),
        ({"text": "no picture"}, "`image_url`"),
        ({"image": "QQ==", "image_url": "http://a/b.png"}, "send the picture once"),
        ({"image": 7}, "the picture should be a text"),
        ({"image": None, "image_url": None, "text": "what?"}, "`image_url`"),
        ({"openai_route": 7}, "openai_route is '7'"),
        ({"openai_route": "/health", "openai_input": {}}, "/health"),
        ({"openai_route": "//evil.example/v1/x", "openai_input": {}}, "evil"),
        ({"openai_route": "/v1/../metrics", "openai_input": {}}, "metrics"),
        ({"openai_route": CHAT}, "openai_input should be a JSON object"),
        ({"openai_route": CHAT, "openai_input": {}, "messages": []}, "`messages` cannot stand beside"),
    ],
)
def test_an_input_of_no_form_is_refused_in_one_sentence(given: object, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        read_job({"input": given})


TOO_LARGE = base64.b64encode(bytes(2 << 20)).decode()
TOO_WIDE = data_url(encoded(Pillow.new("1", (200, 200))))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"image_url": PICTURE, "colour": "red"}, "unknown field `colour`"),
        ({"image_url": PICTURE, "max_tokens": 0}, "`max_tokens`"),
        ({"image_url": PICTURE, "text": {}}, "text"),
        ({"image": "no base64 at all"}, "base64"),
        ({"image_url": TOO_WIDE}, "media.max_pixels"),
        ({"image": TOO_LARGE}, "1 MB|1048576"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "the model holds"),
        ({"messages": []}, "`messages` is empty"),
        ({"image_url": "http://127.0.0.1/a.png"}, "127.0.0.1"),
    ],
)
async def test_what_the_server_refuses_comes_back_as_its_sentence(
    address: str, given: dict[str, object], why: str
) -> None:
    assert re.search(why, complaint(await ask(Worker(address), given)))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "half \ud83d", {"deep": ["\udc00"]}])
async def test_what_json_cannot_say_is_refused_before_it_is_sent(address: str, value: object) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "user": value}
    assert "half a character" in complaint(await ask(Worker(address), body))
    (item,) = await ask(Worker(address), {"openai_route": CHAT, "openai_input": body})
    assert isinstance(item, dict)
    assert item["error"]["type"] == "invalid_request_error"


async def test_an_openai_route_fails_with_openais_error_object(address: str) -> None:
    given = {"openai_route": CHAT, "openai_input": {"messages": [], "stream": True}}
    (item,) = await ask(Worker(address), given)
    assert isinstance(item, dict)
    assert item["error"]["type"] == "invalid_request_error"
    assert item["error"]["param"] == "messages"


async def test_one_job_for_a_test_is_answered_without_a_generator(address: str) -> None:
    worker = Worker(address)
    whole = await worker.answer_whole({"input": {"image_url": PICTURE}})
    assert said(whole)
    streamed = await worker.answer_whole({"input": {"image_url": PICTURE, "stream": True}})
    assert isinstance(streamed, list)
    assert len(streamed) > 3


async def test_a_job_that_is_stopped_frees_its_place() -> None:
    inside = Inside(Settings(engine="fake", max_queue=1))
    address = inside.start()
    try:
        worker = Worker(address)
        body = {"messages": [{"role": "user", "content": "word " * 2000}], "stream": True, "max_tokens": 4000}
        async with aclosing(worker.answer({"input": body})) as items:
            await anext(items)
        # The only place in the queue: this one is answered when the first has given it back.
        (item,) = await ask(Worker(address), {"image_url": PICTURE})
        assert said(item)
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"{address}/metrics")).text
        assert 'onsight_request_failure_total{model_name="peek",reason="cancelled"} 1.0' in metrics
    finally:
        inside.close()


async def test_a_full_queue_is_waited_for() -> None:
    inside = Inside(Settings(engine="fake", max_queue=1))
    worker = Worker(inside.start())
    try:
        both = await asyncio.gather(*(ask(worker, {"image_url": PICTURE, "n": 1}) for _ in range(3)))
        assert [said(item) for (item,) in both]
    finally:
        inside.close()


def servers_inside() -> int:
    return sum(thread.name == "onsight-server" for thread in threading.enumerate())


class Env:
    """Sets the environment of a worker, cleared of what would change it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        for name in ("API_BASE_URL", "RUNPOD_WEBHOOK_GET_JOB"):
            patch.delenv(name, raising=False)

    def __call__(self, **values: str) -> AbstractContextManager[Mapping[str, object]]:
        for name, value in values.items():
            self._patch.setenv(name, value)
        return serverless_worker()


@pytest.fixture
def worker_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Env]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Env(monkeypatch)
    root.handlers[:], root.level = handlers, level


async def first(worker: Mapping[str, object], given: object) -> Item:
    handler = worker["handler"]
    assert inspect.isasyncgenfunction(handler)
    async with aclosing(handler({"id": "1", "input": given})) as items:
        return await anext(items)


async def test_runpod_is_told_the_handler_and_as_many_jobs_as_the_queue_has_places(worker_with: Env) -> None:
    before = servers_inside()
    with worker_with(ONSIGHT_ENGINE="fake", ONSIGHT_MAX_QUEUE="7", RUNPOD_WEBHOOK_GET_JOB="http://x") as worker:
        concurrency = worker["concurrency_modifier"]
        assert callable(concurrency)
        assert concurrency(1) == 7
        assert worker["return_aggregate_stream"] is True
        assert said(await first(worker, {"image_url": PICTURE}))
    assert servers_inside() == before


async def test_a_worker_takes_as_many_open_files_as_it_is_given(worker_with: Env) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with worker_with(ONSIGHT_ENGINE="fake", RUNPOD_WEBHOOK_GET_JOB="http://x"):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1024) > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "environment",
    [
        {"ONSIGHT_ALLOWED_HOSTS": "a.example"},
        {"ONSIGHT_KEYS_FILE": "no-such-file.json"},
        {"ONSIGHT_API_KEY": "secret", "ONSIGHT_HOST": "0.0.0.0"},
    ],
)
async def test_names_and_keys_of_clients_do_not_keep_jobs_out(worker_with: Env, environment: dict[str, str]) -> None:
    with worker_with(ONSIGHT_ENGINE="fake", RUNPOD_WEBHOOK_GET_JOB="http://x", **environment) as worker:
        assert said(await first(worker, {"image_url": PICTURE}))


HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("given", [HELLO, {"openai_route": CHAT, "openai_input": HELLO}])
async def test_a_dead_engine_fails_the_job_at_once_and_the_worker_is_replaced(
    worker_with: Env, monkeypatch: pytest.MonkeyPatch, given: dict[str, object]
) -> None:
    engines: list[FakeEngine] = []

    class Mortal(FakeEngine):
        async def start(self) -> None:
            await super().start()
            engines.append(self)

    monkeypatch.setattr("onsight.engine_choice.FakeEngine", Mortal)
    with worker_with(ONSIGHT_ENGINE="fake", RUNPOD_WEBHOOK_GET_JOB="http://x") as worker:
        assert said(await first(worker, {"image_url": PICTURE}))
        assert not worker.get("refresh_worker")
        await engines[0].close()
        item = await asyncio.wait_for(first(worker, given), 20)
        assert isinstance(item, dict)
        assert "the engine is dead" in str(item["error"])
        assert worker["refresh_worker"] is True


@pytest.mark.parametrize("plain", [True, False])
async def test_an_engine_that_dies_while_it_answers_ends_the_stream_with_an_error_and_the_worker_is_replaced(
    worker_with: Env, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    engine = FakeEngine(FakeScript(step_s=0.005))
    monkeypatch.setattr("onsight.engine_choice.FakeEngine", lambda: engine)
    body = {"messages": [{"role": "user", "content": "word " * 1000}], "stream": True, "max_tokens": 2000}
    with worker_with(ONSIGHT_ENGINE="fake", RUNPOD_WEBHOOK_GET_JOB="http://x") as worker:
        handler = worker["handler"]
        assert inspect.isasyncgenfunction(handler)
        given = {"openai_route": CHAT, "openai_input": body} if plain else body
        async with asyncio.timeout(30), aclosing(handler({"id": "1", "input": given})) as items:
            await anext(items)
            await engine.close()
            last = [item async for item in items][-1]
        assert "the engine was closed" in json.dumps(last)
        assert worker["refresh_worker"] is True


async def test_a_stream_that_ends_in_an_error_of_its_own_does_not_end_the_worker(
    worker_with: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onsight.engine_choice.FakeEngine", lambda: FakeEngine(FakeScript(fail_after=3)))
    with worker_with(ONSIGHT_ENGINE="fake", RUNPOD_WEBHOOK_GET_JOB="http://x") as worker:
        handler = worker["handler"]
        assert inspect.isasyncgenfunction(handler)
        items = [item async for item in handler({"id": "1", "input": {**HELLO, "stream": True}})]
        assert "the engine failed" in json.dumps(items[-1])
        assert "refresh_worker" not in worker


async def test_a_server_inside_that_is_gone_is_told() -> None:
    told: list[str] = []
    await ask(Worker("http://127.0.0.1:9", dead=lambda: told.append("dead")), {"image_url": PICTURE})
    assert told == ["dead"]


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"ONSIGHT_MODEL": "no-such-model"}, "no-such-model"),
        ({"ONSIGHT_PORT": "many"}, "ONSIGHT_PORT"),
        ({"API_BASE_URL": "localhost:8000"}, "API_BASE_URL"),
        ({"API_BASE_URL": "http://h:x"}, "API_BASE_URL is 'http://h:x'"),
        ({"API_BASE_URL": "http://[::1"}, "API_BASE_URL"),
        ({"API_BASE_URL": "http://:8000"}, "API_BASE_URL"),
    ],
)
async def test_why_it_did_not_start_is_told_to_every_caller_and_logged(
    worker_with: Env, capsys: pytest.CaptureFixture[str], environment: dict[str, str], why: str
) -> None:
    with worker_with(RUNPOD_WEBHOOK_GET_JOB="http://x", **environment) as worker:
        for _ in range(2):
            item = await first(worker, {"image_url": PICTURE})
            assert "did not start" in complaint([item])
            assert why in complaint([item])
    assert why in capsys.readouterr().err


async def test_with_api_base_url_jobs_are_forwarded_and_nothing_is_loaded(address: str, worker_with: Env) -> None:
    settings = {"ONSIGHT_MODEL": "no-such-model", "RUNPOD_WEBHOOK_GET_JOB": "http://x"}
    before = servers_inside()
    with worker_with(API_BASE_URL=f"{address}/v1/", **settings) as worker:
        assert servers_inside() == before
        assert said(await first(worker, {"image_url": PICTURE}))


async def test_a_server_that_cannot_be_reached_is_one_sentence() -> None:
    told = complaint(await ask(Worker("http://127.0.0.1:9"), {"image_url": PICTURE}))
    assert told == "the server broke off or cannot be reached (ConnectError)"


def test_the_environment_says_whether_runpod_hands_out_jobs() -> None:
    assert not takes_runpod_jobs({})
    assert takes_runpod_jobs({"RUNPOD_WEBHOOK_GET_JOB": "http://x"})
    assert load_worker_settings({"API_BASE_URL": "https://a.example/v1"}).forward_to == "https://a.example"
    with pytest.raises(StartError, match="API_BASE_URL is 'x'"):
        load_worker_settings({"API_BASE_URL": "x"})
