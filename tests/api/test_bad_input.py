"""Wrong requests: each is a clear 4xx that names the field, and the next request is answered."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from onsight.engines.fake_engine import FakeScript
from tests.api.conftest import Bench, hello, user

ROUTE = "/v1/chat/completions"
URL = "data:image/png;base64,AAAA"


def image(**fields: object) -> list[dict[str, object]]:
    return user({"type": "image_url", "image_url": {"url": URL, **fields}})


def video(**fields: object) -> list[dict[str, object]]:
    return user({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA", **fields}})


def called(**function: object) -> dict[str, object]:
    """An assistant's message that calls `click`."""
    call = {"id": "call_1", "type": "function", "function": {"name": "click", "arguments": "{}", **function}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tool(name: object = "click", **fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, **fields}}


WRONG = {
    "an unknown field": ({"foo": 1}, "foo", "unknown field `foo`"),
    "an unknown field of a message": (
        {"messages": [{"role": "user", "content": "x", "colour": 1}]},
        "messages.0.colour",
        "unknown field `colour`",
    ),
    "an unknown field of a picture": (
        {"messages": image(size=1)},
        "messages.0.content.0.image_url.size",
        "unknown field `size`",
    ),
    "no messages": ({"messages": []}, "messages", "empty"),
    "messages of a wrong type": ({"messages": "hi"}, "messages", "array"),
    "a message of a wrong type": ({"messages": ["hi"]}, "messages.0", "object"),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "not empty"),
    "no parts": ({"messages": user()}, "messages.0.content", "not empty"),
    "an empty question": ({"messages": hello("")}, "messages.0.content", "empty"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    "no role": ({"messages": [{"content": "x"}]}, "messages.0.role", "missing"),
    "an unknown role": ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role", "'bot'"),
    "a function's message": ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role", "not supported"),
    "a result of no call": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages.0.tool_call_id",
        "name the call",
    ),
    "a result of a call that nobody made": (
        {"messages": [*hello(), called(), {"role": "tool", "content": "x", "tool_call_id": "call_2"}]},
        "messages.2.tool_call_id",
        "'call_2'",
    ),
    "a picture as a result": (
        {"messages": [*hello(), called(), {**image()[0], "role": "tool", "tool_call_id": "call_1"}]},
        "messages.2.content",
        "put it into a user message",
    ),
    "a user who answers a call": (
        {"messages": [*hello(), called(), {"role": "user", "content": "x", "tool_call_id": "call_1"}]},
        "messages.2.tool_call_id",
        "answers no call",
    ),
    "a user who calls": ({"messages": [{**called(), "role": "user"}]}, "messages.0.tool_calls", "cannot call"),
    "a list of no calls": (
        {"messages": [*hello(), {"role": "assistant", "content": "x", "tool_calls": []}, *hello()]},
        "messages.1.tool_calls",
        "empty",
    ),
    "a call whose arguments are no JSON": (
        {"messages": [*hello(), called(arguments="x=1"), *hello()]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON object",
    ),
    "a call whose arguments are a list": (
        {"messages": [*hello(), called(arguments="[1]"), *hello()]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON object",
    ),
    "a call whose arguments hold half a character": (
        {"messages": [*hello(), called(arguments='{"x": "\\ud800"}'), *hello()]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON object",
    ),
    "a call whose arguments are nested without end": (
        {"messages": [*hello(), called(arguments='{"x": ' + "[" * 20_000), *hello()]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON object",
    ),
    "a call whose arguments hold no number": (
        {"messages": [*hello(), called(arguments='{"x": NaN}'), *hello()]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON object",
    ),
    "a part that is a text": ({"messages": user("x")}, "messages.0.content.0", "object"),
    "a part of no type": ({"messages": user({"text": "x"})}, "messages.0.content.0.type", "image_url"),
    "a part of an unknown type": ({"messages": user({"type": "x"})}, "messages.0.content.0.type", "image_url"),
    "a video for a model that sees none": (
        {"messages": video()},
        "messages.0.content.0.video_url",
        "model 'fake' does not see videos",
    ),
    "a video's own kind of part": (
        {"messages": user({"type": "video", "video": URL})},
        "messages.0.content.0.video",
        "send text, image_url, file, image or video_url",
    ),
    "an unknown field of a video": (
        {"messages": video(detail="low")},
        "messages.0.content.0.video_url.detail",
        "unknown field `detail`",
    ),
    "no frames a second": ({"messages": video(fps=0)}, "messages.0.content.0.video_url.fps", "greater than 0"),
    "no frames": ({"messages": video(max_frames=0)}, "messages.0.content.0.video_url.max_frames", "it is 0"),
    "a video in a system message": (
        {"messages": [{**video()[0], "role": "system"}, *hello()]},
        "messages.0.content",
        "put it into a user message",
    ),
    "an empty address": ({"messages": image(url="")}, "messages.0.content.0.image_url.url", "at least 1"),
    "an address that is a number": ({"messages": image(url=3)}, "messages.0.content.0.image_url.url", "string"),
    "an unknown detail": ({"messages": image(detail="huge")}, "messages.0.content.0.image_url.detail", "'huge'"),
    "bounds that cross": (
        {"messages": image(min_pixels=9, max_pixels=4)},
        "messages.0.content.0.image_url.min_pixels",
        "more than max_pixels",
    ),
    "a picture seen larger than one may be sent": (
        {"messages": image(min_pixels=200_000_000_000, max_pixels=200_000_000_000)},
        "messages.0.content.0.image_url.min_pixels",
        "min_pixels is 200000000000; the most is 40000000",
    ),
    "a bound past every picture": (
        {"messages": image(max_pixels=40_000_001)},
        "messages.0.content.0.image_url.max_pixels",
        "max_pixels is 40000001; the most is 40000000",
    ),
    "a picture in a system message": (
        {"messages": [{**image()[0], "role": "system"}, *hello()]},
        "messages.0.content",
        "put it into a user message",
    ),
    "an answer that the user did not ask for": (
        {"messages": [*hello(), {"role": "assistant", "content": "x"}]},
        "messages.1",
        "must be from 'user'",
    ),
    "a picture that is none": ({"messages": image()}, "messages.0.content.0.image_url", "not a picture"),
    "broken base64": (
        {"messages": user({"type": "image", "image": {"b64": "@@@@"}})},
        "messages.0.content.0.image",
        "base64",
    ),
    "a number as text": ({"max_tokens": "12"}, "max_tokens", "integer"),
    "a boolean as number": ({"max_tokens": True}, "max_tokens", "integer"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "it is 0"),
    "a hot temperature": ({"temperature": 2.5}, "temperature", "2.5"),
    "top_p of nothing": ({"top_p": 0}, "top_p", "greater than 0"),
    "a large penalty": ({"presence_penalty": 3}, "presence_penalty", "3"),
    "no answers": ({"n": 0}, "n", "1"),
    "two different limits": ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "send one"),
    "stream options without a stream": ({"stream": False, "stream_options": {}}, "stream_options", "stream: true"),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    "an empty stop text": ({"stop": ""}, "stop.0", "at least 1"),
    "a stop that is a number": ({"stop": [1]}, "stop.0", "string"),
    "an unknown response format": ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    "a response format without its schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "missing",
    ),
    "stored answers": ({"store": True}, "store", "not supported"),
    "another tier": ({"service_tier": "priority"}, "service_tier", "not supported"),
    "a list of no tools": ({"tools": []}, "tools", "empty"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
    "a tool of another kind": ({"tools": [{"type": "web_search"}]}, "tools.0.type", "`web_search` is not supported"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "missing"),
    "a tool's name with blanks": ({"tools": [tool("click here")]}, "tools.0.function.name", "'click here'"),
    "two tools of one name": ({"tools": [tool(), tool()]}, "tools.1.function.name", "two tools are called 'click'"),
    "an unknown field of a tool": ({"tools": [tool(cost=1)]}, "tools.0.function.cost", "unknown field"),
    "parameters that are no schema": ({"tools": [tool(parameters="x")]}, "tools.0.function.parameters", "dictionary"),
    "parameters that are no object": (
        {"tools": [tool(parameters={"type": "string"})]},
        "tools.0.function.parameters.type",
        "'object'",
    ),
    "a choice of no tool": ({"tool_choice": "required"}, "tool_choice", "no tools"),
    "a choice of an unknown tool": (
        {"tools": [tool()], "tool_choice": tool("scroll")},
        "tool_choice.function.name",
        "'scroll'; the request's tools are 'click'",
    ),
    "an unknown choice": ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "none, auto, required"),
    "a choice without a name": (
        {"tools": [tool()], "tool_choice": {"type": "function"}},
        "tool_choice.function",
        "missing",
    ),
    "a choice of another kind": (
        {"tools": [tool()], "tool_choice": {"type": "allowed_tools"}},
        "tool_choice.type",
        "`allowed_tools` is not supported",
    ),
    "a parallel that is a word": ({"tools": [tool()], "parallel_tool_calls": "yes"}, "parallel_tool_calls", "boolean"),
    "a field that looks like a label of ours": ({"part:x": 1}, "part:x", "unknown field `part:x`"),
    "a choice among more tokens than there can be": ({"top_k": 10**30}, "top_k", "less than"),
    "a temperature beyond all numbers": ({"temperature": 10**400}, "temperature", "number"),
    "functions": ({"functions": []}, "functions", "not supported"),
    "spoken answers": ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    "a voice": ({"audio": {"voice": "alloy"}}, "audio", "not supported"),
    "reasoning effort": ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    "logit bias": ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_request_is_400_and_names_its_field(bench: Bench, what: str) -> None:
    fields, param, words = WRONG[what]
    for stream in ({}, {"stream": True}):
        response = await bench.chat(**{**stream, **fields})
        error = response.json()["error"]
        assert response.status_code == 400, error
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert words in error["message"]
    assert (await bench.chat()).status_code == 200
    assert bench.admission.taken == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"messages": [}', "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "array"),
        (b"null", "null"),
        (b'"x"', "string"),
        (b'{"messages":[' + b"[]," * 600_000 + b"[]]}", "too many values"),
        (b'{"messages":[' + b"{}," * 120_000 + b"{}]}", "too many values"),
        (json.dumps({f"f{i}": 1 for i in range(2000)}).encode(), "too many fields"),
    ],
)
async def test_a_body_that_is_no_json_object_of_a_sane_extent_is_400(bench: Bench, body: bytes, words: str) -> None:
    async with bench.client() as client:
        response = await client.post(ROUTE, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
async def test_a_number_that_is_not_finite_is_400(bench: Bench, number: str) -> None:
    body = json.dumps({"messages": hello(), "temperature": "NUMBER"}).replace('"NUMBER"', number)
    async with bench.client() as client:
        response = await client.post(ROUTE, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "temperature"


async def test_an_origin_that_is_no_url_is_no_page_of_ours(bench: Bench) -> None:
    response = await bench.get("/health", origin="http://[")
    assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (
            ROUTE,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"maximum": "HERE"}}}},
            "response_format.json_schema.schema",
        ),
        (ROUTE, {"tools": [tool(parameters={"type": "object", "minimum": "HERE"})]}, "tools.0.function.parameters"),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["HERE"]}}}},
            "text.format.schema",
        ),
    ],
)
async def test_a_schema_with_a_number_that_json_has_not_is_400(
    bench: Bench, route: str, fields: dict[str, object], param: str, number: str
) -> None:
    said = {"messages": hello()} if route == ROUTE else {"input": "hello"}
    body = json.dumps({**said, **fields}).replace('"HERE"', number)
    async with bench.client() as client:
        response = await client.post(route, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "not finite" in response.json()["error"]["message"]


async def test_a_message_with_commas_by_the_ten_thousand_is_just_long(bench: Bench) -> None:
    assert (await bench.chat(messages=hello("a, [b], " * 40_000), max_tokens=1)).status_code in (200, 400)
    answer = (await bench.chat(messages=hello("," * 100_000), max_tokens=1)).json()
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_only_json_is_read_as_json(bench: Bench, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    async with bench.client() as client:
        response = await client.post(ROUTE, content=json.dumps({"messages": hello()}), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


async def test_a_compressed_body_is_refused_by_its_encoding(bench: Bench) -> None:
    async with bench.client() as client:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        response = await client.post(ROUTE, content=b"x", headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (415, "content-encoding")


async def test_an_unknown_model_is_404_and_the_loaded_ones_are_named(bench: Bench) -> None:
    response = await bench.chat(model="gpt-4o")
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "'fake', 'org/fake-2B'" in error["message"]


async def test_a_context_that_is_too_long_says_what_took_how_much(build: Callable[..., Bench]) -> None:
    response = await build(FakeScript(context_tokens=4)).chat(messages=hello("one two three four five"))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "text 5, pictures 0, videos 0" in error["message"]


def test_a_wrong_value_is_repeated_only_when_it_is_short() -> None:
    from onsight.api.json_body import parse
    from onsight.api.openai.wire import ChatRequest
    from onsight.core.errors import InvalidRequest

    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps({"messages": hello(), "temperature": "secret " * 50}).encode(), ChatRequest)
    assert "secret" not in caught.value.message
