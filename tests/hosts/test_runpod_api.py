"""handler.py under RunPod's own package: one job by itself, and RunPod's local API in front of the fake engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.media.pictures import data_url, plain
from tests.servers import wait_until

pytestmark = pytest.mark.runpod

ROOT = Path(__file__).parents[2]
JOB = {"image_url": data_url(plain(size=(32, 24))), "text": "what is it?"}


def environment(**more: str) -> dict[str, str]:
    ours = ("ONSIGHT_", "RUNPOD_", "API_BASE_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def handler(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "handler.py", *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)],
        cwd=ROOT,
        env=environment(ONSIGHT_ENGINE="fake"),
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def listens() -> bool:
            assert process.poll() is None, "the local API ended"
            try:
                return client.get("/openapi.json").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until(listens, 120)
            yield client
        finally:
            process.terminate()
            process.wait(30)


def answered(output: object) -> str:
    match output:
        case {"status": "success", "output": {"choices": [{"message": {"content": str(text)}}]}}:
            return text
    raise AssertionError(output)


def test_the_job_of_test_input_is_answered_by_the_bundled_model() -> None:
    done = handler()
    assert done.returncode == 0, done.stderr
    assert "'status': 'success'" in done.stdout
    assert "blue" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_bundled_retriever_answers_too_where_no_model_is_named() -> None:
    body = {"model": "leaf", "input": "invoice"}
    job = {"input": {"openai_route": "/v1/embeddings", "openai_input": body}}
    done = handler("--test_input", json.dumps(job))
    assert done.returncode == 0, done.stderr
    assert "'embedding'" in done.stdout


def test_a_job_that_fails_by_itself_ends_with_code_1() -> None:
    done = handler("--test_input", '{"input": {"text": "no picture"}}', ONSIGHT_ENGINE="fake")
    assert done.returncode == 1
    assert "the input should have `image_url`" in done.stdout
    unstarted = handler(ONSIGHT_PORT="many")
    assert unstarted.returncode == 1
    assert "the server did not start" in unstarted.stdout


def test_runsync_answers(api: httpx.Client) -> None:
    answer = api.post("/runsync", json={"input": JOB}).json()
    assert answer["status"] == "COMPLETED"
    (output,) = answer["output"]
    assert answered(output).startswith("fake engine: what is it? [32x24]")


def test_run_and_status_answer(api: httpx.Client) -> None:
    queued = api.post("/run", json={"input": {"messages": [{"role": "user", "content": "hello"}]}}).json()
    assert queued["status"] == "IN_PROGRESS"
    answer = api.post(f"/status/{queued['id']}").json()
    assert answer["status"] == "COMPLETED"
    assert answered(answer["output"][0]).startswith("fake engine: hello")


def test_stream_answers_piece_by_piece(api: httpx.Client) -> None:
    queued = api.post("/run", json={"input": {**JOB, "stream": True}}).json()
    answer = api.post(f"/stream/{queued['id']}").json()
    assert answer["status"] == "COMPLETED"
    chunks = [piece["output"]["output"] for piece in answer["stream"]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.startswith("fake engine: what is it?")
    assert len(chunks) > 3


def test_an_openai_stream_comes_as_events(api: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    given = {"openai_route": "/v1/chat/completions", "openai_input": body}
    answer = api.post("/runsync", json={"input": given}).json()
    assert "".join(answer["output"]).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "the input should have `image_url`"),
        ({**JOB, "colour": "red"}, "unknown field `colour`"),
        ({"image_url": "data:image/png;base64,QUJD"}, "not a picture"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_a_wrong_input_fails_in_one_sentence_and_the_worker_goes_on(
    api: httpx.Client, given: dict[str, object], why: str
) -> None:
    (failed,) = api.post("/runsync", json={"input": given}).json()["output"]
    assert failed["status"] == "failed"
    assert why in failed["error"]
    assert "Traceback" not in failed["error"]
    assert api.post("/runsync", json={"input": JOB}).json()["status"] == "COMPLETED"


async def test_runpod_ends_a_worker_that_asks_for_it_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from runpod.serverless.modules import rp_job

    results: list[dict[str, object]] = []

    async def kept(_session: object, result: dict[str, object], *_more: object, **_options: object) -> None:
        results.append(result)

    monkeypatch.setattr(rp_job, "send_result", kept)
    monkeypatch.setattr(rp_job, "stream_result", kept)

    async def handler(_job: object) -> AsyncGenerator[dict[str, str], None]:
        worker["refresh_worker"] = True
        yield {"status": "failed", "error": "the engine is dead"}

    worker: dict[str, object] = {"handler": handler, "return_aggregate_stream": True}
    await rp_job.handle_job(None, worker, {"id": "1", "input": {}})
    assert results == [{"error": "the engine is dead", "stopPod": True}]
