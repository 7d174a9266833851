"""POST /v1/chat/completions: what is honoured, and what answers look like."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncGenerator, Callable

import pytest
from PIL import Image as Picture

from onsight.api.openai.calls import to_call
from onsight.api.openai.wire import ChatRequest
from onsight.api.services import ApiSettings
from onsight.core.generation import Candidate, Event, Finished, GenerateRequest, Sampling, TextDelta, Usage
from onsight.core.messages import Draft, ImageOptions, ImageRef, Text
from onsight.core.pages import Pages
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.models.card import Defaults
from tests.api.conftest import Bench, events, hello, until, user


def png(width: int = 32, height: int = 16) -> str:
    """A small picture's file, as base64."""
    file = io.BytesIO()
    Picture.new("RGB", (width, height), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def call(**fields: object):
    request = ChatRequest.model_validate({"messages": hello(), **fields})
    return to_call(request, ApiSettings(max_tokens_default=99, temperature_default=0.5), "id", Defaults())


async def test_a_plain_answer_has_openais_shape(bench: Bench) -> None:
    response = await bench.chat(temperature=0, max_tokens=3)
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "fake engine:", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 3,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0},
    }


async def test_a_stream_begins_with_the_role_and_ends_with_reason_and_done(bench: Bench) -> None:
    response = await bench.chat(temperature=0, max_tokens=3, stream=True)
    *chunks, last = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert last == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [choice["delta"] for choice in choices[1:-1]] == [{"content": piece} for piece in ("fake", " ", "engine:")]
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert "usage" not in chunks[0]


@pytest.mark.parametrize("fields", [{}, {"stop": "blue"}, {"n": 3, "seed": 1}, {"max_tokens": 5}])
async def test_stream_and_plain_answers_carry_the_same_text(bench: Bench, fields: dict[str, object]) -> None:
    plain = (await bench.chat(seed=7, **fields) if "seed" not in fields else await bench.chat(**fields)).json()
    stream = events(await bench.chat(**{"seed": 7, **fields}, stream=True, stream_options={"include_usage": True}))
    for choice in plain["choices"]:
        own = [part for chunk in stream[:-2] for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert stream[-2]["choices"] == []
    assert stream[-2]["usage"] == plain["usage"]
    assert all(chunk["usage"] is None for chunk in stream[:-2])


async def test_logprobs_are_told_per_token_plainly_and_streamed(bench: Bench) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 3, "temperature": 0}
    plain = (await bench.chat(**asked)).json()["choices"][0]["logprobs"]["content"]
    chunks = events(await bench.chat(**asked, stream=True))[:-1]
    streamed = [
        token
        for chunk in chunks
        for choice in chunk["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == plain
    assert [token["token"] for token in plain] == ["fake", " ", "engine:"]
    assert plain[0]["bytes"] == list(b"fake")
    assert [set(top) for top in plain[0]["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2


async def test_more_log_probabilities_than_are_held_at_once_are_refused_before_they_are_made(
    build: Callable[..., Bench],
) -> None:
    bench = build(places=64)
    many = {"n": 64, "max_tokens": 2000, "logprobs": True, "top_logprobs": 20}
    error = (await bench.chat(**many)).json()["error"]
    assert error["param"] == "logprobs"
    assert "n 64 x 2000 tokens x 21 log-probabilities each are 2688000; the limit is 1000000" in error["message"]
    assert "send `stream: true`, or a smaller n, max_tokens or top_logprobs" in error["message"]
    assert bench.records == []
    for fewer in ({"stream": True}, {"n": 23}, {"max_tokens": 700}, {"top_logprobs": 6}, {"logprobs": None}):
        fields = {**many, **fewer}
        if not fields["logprobs"]:
            del fields["top_logprobs"]
        assert (await bench.chat(**fields)).status_code == 200, fewer


async def test_log_probabilities_are_counted_by_the_context_where_that_ends_an_answer_first(
    build: Callable[..., Bench],
) -> None:
    asked = {"max_tokens": 1_000_000, "logprobs": True, "top_logprobs": 20}
    assert (await build(FakeScript(context_tokens=32 << 10)).chat(**asked)).status_code == 200
    assert (await build(FakeScript(context_tokens=64 << 10)).chat(**asked)).status_code == 400
    # An engine whose context is another program's, which does not say.
    assert (await build(FakeScript(context_tokens=0)).chat(**asked)).json()["error"]["param"] == "logprobs"


class Held:
    """A token whose log-probability can be read once `may` is set; `asked` says that somebody waits for it."""

    top = ()

    def __init__(self) -> None:
        self.asked, self.may = threading.Event(), threading.Event()

    @property
    def chosen(self) -> Candidate:
        self.asked.set()
        assert self.may.wait(5), "nobody else came to pass"
        return Candidate("a", b"a", -0.5)


async def test_other_requests_are_answered_while_log_probabilities_are_written(build: Callable[..., Bench]) -> None:
    held = Held()

    class Telling(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            yield TextDelta("a", (held,))  # type: ignore[arg-type]
            yield Finished("stop", Usage(1, 1))

    bench = build(engine=Telling())
    asking = asyncio.create_task(bench.chat(logprobs=True))
    await until(held.asked.is_set)
    assert (await bench.get("/v1/models")).status_code == 200
    held.may.set()
    (token,) = (await asking).json()["choices"][0]["logprobs"]["content"]
    assert token == {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


async def test_several_answers_share_one_prompt_in_usage(bench: Bench) -> None:
    answer = (await bench.chat(n=3, seed=1, max_tokens=20)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (1, 60)


async def test_more_answers_than_the_queue_has_places_are_refused_for_good(build: Callable[..., Bench]) -> None:
    response = await build(places=2).chat(n=3)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


async def test_a_json_schema_is_given_to_the_engine(bench: Bench) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}, "word": {"enum": ["yes", "no"]}}}
    form = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": schema}}
    answer = (await bench.chat(response_format=form)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"x": 0, "word": "yes"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png()}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{png()}"},
        {"type": "image", "image": {"b64": png()}},
        {"type": "image", "image": {"b64": f"data:image/png;base64,{png()}"}},
    ],
)
async def test_every_form_of_a_picture_reaches_the_model(bench: Bench, part: dict[str, object]) -> None:
    answer = (await bench.chat(messages=user({"type": "text", "text": "look"}, part))).json()
    assert "[32x16]" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 16


async def test_a_model_may_be_called_by_any_of_its_names_or_by_none(bench: Bench) -> None:
    for model in ("fake", "org/fake-2B", None):
        assert (await bench.chat(model=model)).json()["model"] == "fake"


async def test_a_history_with_our_own_answer_in_it_is_read(bench: Bench) -> None:
    first = (await bench.chat()).json()["choices"][0]["message"]
    message = {**first, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    response = await bench.chat(
        messages=[{"role": "developer", "content": "be brief"}, *hello(), message, *hello("more")]
    )
    assert response.status_code == 200


def test_a_models_own_defaults_stand_before_the_servers() -> None:
    settings, own = ApiSettings(temperature_default=0.5, top_p_default=0.9), Defaults(temperature=0.0)
    silent = to_call(ChatRequest.model_validate({"messages": hello()}), settings, "id", own)
    assert (silent.sampling.temperature, silent.sampling.top_p) == (0.0, 0.9)
    asked = ChatRequest.model_validate({"messages": hello(), "temperature": 1.5, "top_p": 0.25})
    told = to_call(asked, settings, "id", Defaults(temperature=0.0, top_p=0.8))
    assert (told.sampling.temperature, told.sampling.top_p) == (1.5, 0.25)


async def test_the_route_samples_as_the_models_card_says(build: Callable[..., Bench]) -> None:
    asked: list[GenerateRequest] = []

    class Listening(FakeEngine):
        def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            asked.append(request)
            return super().generate(request)

    await build(engine=Listening()).chat()
    assert asked[0].sampling.temperature == 0.25


def test_every_sampling_field_reaches_the_engine() -> None:
    asked = call(
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=3,
        seed=11,
        presence_penalty=1,
        frequency_penalty=-1.5,
        stop=["a", "b"],
        logprobs=True,
        top_logprobs=4,
    )
    assert asked.sampling == Sampling(7, 0.0, 0.5, 3, 11, 1.0, -1.5, ("a", "b"), True, 4)
    assert call(stop="x").sampling.stop == ("x",)


def test_the_servers_defaults_hold_where_a_request_names_none() -> None:
    for fields in ({}, {"max_tokens": None, "temperature": None, "stop": None, "n": None, "response_format": None}):
        asked = call(**fields)
        assert asked.sampling == Sampling(max_tokens=99, temperature=0.5)
        assert (asked.n, asked.schema, asked.model) == (1, None, None)


def test_messages_become_drafts_with_options_and_places() -> None:
    url = {"url": "https://example.org/a.png", "detail": "low", "min_pixels": 10, "max_pixels": 20}
    place = "messages.1.content.1.image_url"
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": url}]},
    ]
    assert call(messages=messages).drafts == (
        Draft("system", (Text("s"),)),
        Draft(
            "user",
            (Text("t"), ImageRef(url["url"], ImageOptions("low", 10, 20), place, Pages(param=f"{place}.pages"))),
        ),
    )


@pytest.mark.parametrize(
    ("form", "schema"),
    [({"type": "text"}, None), ({"type": "json_object"}, {"type": "object"})],
)
def test_a_response_format_becomes_a_schema(form: dict[str, object], schema: dict[str, object] | None) -> None:
    asked = call(response_format=form).schema
    assert asked == schema if schema is None else json.loads(asked or "") == schema


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}},
        {"store": False, "service_tier": "auto", "modalities": ["text"], "tool_choice": "none"},
        {"tools": None, "functions": None, "logit_bias": None, "reasoning_effort": None, "audio": None},
    ],
)
async def test_fields_that_rightly_change_nothing_change_nothing(bench: Bench, fields: dict[str, object]) -> None:
    with_fields, without = await bench.chat(temperature=0, **fields), await bench.chat(temperature=0)
    assert with_fields.status_code == 200
    assert with_fields.json()["choices"] == without.json()["choices"]


async def test_a_speakers_name_and_a_forms_description_are_taken_as_clients_send_them(bench: Bench) -> None:
    form = {"name": "spot", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    named = [{"role": "user", "content": "hello", "name": "ann"}]
    told = await bench.chat(
        messages=named,
        response_format={"type": "json_schema", "json_schema": {**form, "description": "A spot."}},
    )
    plain = await bench.chat(response_format={"type": "json_schema", "json_schema": form})
    assert told.status_code == 200
    assert told.json()["choices"] == plain.json()["choices"]
    assert told.json()["usage"] == plain.json()["usage"]


async def test_an_error_after_the_first_event_is_one_error_event_and_the_end(build: Callable[..., Bench]) -> None:
    response = await build(FakeScript(fail_after=2)).chat(stream=True)
    *chunks, last = events(response)
    assert response.status_code == 200
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "fake "
    assert last["error"]["code"] == "engine_error"
    assert "[DONE]" not in response.text


async def test_an_error_before_the_first_event_is_a_real_status(build: Callable[..., Bench]) -> None:
    response = await build(FakeScript(context_tokens=3)).chat(messages=hello("a b c d"), stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "text 4, pictures 0" in response.json()["error"]["message"]


async def test_an_engine_that_fails_fails_its_request_alone(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(fail_after=2))
    assert (await bench.chat()).status_code == 500
    assert (await bench.chat(max_tokens=2)).status_code == 200
