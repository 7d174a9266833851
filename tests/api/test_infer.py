"""/infer when the server cannot answer: each service's own envelope, with a status that says why."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import httpx
import pytest

from onsight.api.keys import KeyBook
from onsight.core.engine import EngineState
from onsight.engines.fake_engine import FakeScript
from onsight.models.card import ModelCard, Prompt
from tests.api.conftest import CARD, Bench
from tests.api.test_health import Stated
from tests.media.pictures import plain

Form = Literal["form", "json"]


async def infer(bench: Bench, form: Form, picture: bytes = plain()) -> httpx.Response:
    async with bench.client() as client:
        if form == "form":
            return await client.post("/infer", files={"file": picture})
        return await client.post("/infer", json={"prompt": "what?", "image": base64.b64encode(picture).decode()})


def captioner() -> ModelCard:
    return replace(CARD, capabilities=("chat", "caption"), prompts={"caption": Prompt("Say.")})


def said(response: httpx.Response, form: Form, kind: str) -> str:
    """The error's text; checks the rest of the envelope."""
    answer = response.json()
    if form == "form":
        assert list(answer) == ["detail"]
        return str(answer["detail"])
    assert (answer["success"], answer["error_type"]) == (False, kind)
    return str(answer["error"])


@pytest.mark.parametrize("form", ["form", "json"])
@pytest.mark.parametrize("state", ["loading", "dead"])
async def test_a_model_that_is_not_loaded_is_503(build: Callable[..., Bench], form: Form, state: EngineState) -> None:
    response = await infer(build(engine=Stated(state), card=captioner()), form)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert said(response, form, "model") == "Model not loaded"
    if form == "json":
        assert response.json()["details"] == {"retry_after_s": 5}


@pytest.mark.parametrize(("form", "kind"), [("form", "multipart/form-data; boundary=b"), ("json", "application/json")])
async def test_a_full_queue_is_429_before_the_body_is_read(build: Callable[..., Bench], form: Form, kind: str) -> None:
    bench = build(places=1, card=captioner())
    with bench.admission.place():
        async with bench.client() as client:
            response = await client.post("/infer", content=b"{", headers={"content-type": kind})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "1 places" in said(response, form, "system")


@pytest.mark.parametrize("form", ["form", "json"])
async def test_an_engine_that_fails_is_500(build: Callable[..., Bench], form: Form) -> None:
    response = await infer(build(FakeScript(fail_after=0), card=captioner()), form)
    assert response.status_code == 500
    assert "the engine failed" in said(response, form, "model")


@pytest.mark.parametrize("form", ["form", "json"])
async def test_a_body_beyond_the_limit_is_413(build: Callable[..., Bench], form: Form) -> None:
    response = await infer(build(max_body_bytes=100, card=captioner()), form, plain(size=(300, 300)))
    assert response.status_code == 413
    assert "100" in said(response, form, "validation")


@pytest.mark.parametrize("form", ["form", "json"])
async def test_a_missing_key_is_401(build: Callable[..., Bench], form: Form) -> None:
    response = await infer(build(keys=KeyBook("k"), card=captioner()), form)
    assert response.status_code == 401
    assert "key" in said(response, form, "system")


async def test_a_model_that_does_not_caption_says_so(bench: Bench) -> None:
    response = await infer(bench, "form")
    assert response.status_code == 400
    assert "was not made to caption" in said(response, "form", "validation")


async def test_what_was_asked_reaches_the_model_and_the_log(bench: Bench) -> None:
    async with bench.client() as client:
        body = {"prompt": "<image> what?", "image": base64.b64encode(plain()).decode(), "max_tokens": 3}
        answer = (await client.post("/infer", json=body)).json()
    assert answer["token_usage"]["completion_tokens"] == 3
    (record,) = bench.records
    assert (record.task, record.images, record.reason) == ("chat", 1, "length")
