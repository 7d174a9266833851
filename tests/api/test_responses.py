"""POST /v1/responses, with OpenAI's own SDK as the client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from onsight.api.openai.responses_calls import to_call
from onsight.api.openai.responses_wire import ResponsesRequest
from onsight.api.services import ApiSettings
from onsight.core.generation import Event, Finished, GenerateRequest, Sampling
from onsight.core.messages import Draft, ImageOptions, ImageRef, Text
from onsight.core.pages import Pages
from onsight.core.tools import Tool, ToolCall, ToolChoice, ToolUse
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.models.card import Defaults
from tests.api.conftest import CARD, Bench
from tests.api.test_openai_chat import png
from tests.api.test_sdk import sdk
from tests.api.test_tools import PLACE

CLICK = {"type": "function", "name": "click", "description": "Click", "parameters": PLACE, "strict": True}
WAIT = {"type": "function", "name": "wait"}
PICTURE = {"type": "input_image", "image_url": f"data:image/png;base64,{png()}", "detail": "auto"}
TEXT = {"type": "input_text", "text": "t"}
CALL = {"type": "function_call", "call_id": "c1", "name": "click", "arguments": '{"x": 1}'}


async def post(bench: Bench, **fields: object):
    async with bench.client() as client:
        return await client.post("/v1/responses", json={"input": "hello", **fields})


def shape(response: Response) -> list[tuple[object, ...]]:
    """What an answer holds, without the ids that are drawn anew each time."""
    return [
        (item.type, item.status, item.content[0].text)
        if item.type == "message"
        else (item.type, item.status, item.name, item.arguments)
        for item in response.output
    ]


@pytest.mark.parametrize(("value", "status"), [(None, 200), (True, 400)])
async def test_a_call_goes_back_with_what_an_sdk_adds_to_it_as_null(bench: Bench, value: object, status: int) -> None:
    output = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    response = await post(
        bench, input=[{"role": "user", "content": "hello"}, {**CALL, "async_": value}, output], tools=[CLICK]
    )
    assert response.status_code == status, response.text
    if status == 400:
        assert response.json()["error"]["param"] == "input.1.async_"


async def test_a_plain_answer_and_what_it_tells_besides(bench: Bench) -> None:
    async with sdk(bench) as client:
        answer = await client.responses.create(
            model="fake",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "look"}, PICTURE]}],
            instructions="be brief",
            temperature=0,
            metadata={"run": "7"},
            store=False,
        )
    assert answer.output_text.startswith("fake engine: look [32x16]")
    assert (answer.object, answer.status) == ("response", "completed")
    assert (answer.incomplete_details, answer.error) == (None, None)
    assert (answer.metadata, answer.instructions, answer.temperature) == ({"run": "7"}, "be brief", 0.0)
    assert (answer.max_output_tokens, answer.top_p, answer.tools, answer.tool_choice) == (512, 1.0, [], "auto")
    assert answer.text.format.type == "text"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.usage.input_tokens, answer.usage.output_tokens_details.reasoning_tokens) == (3 + 16, 0)
    assert (await post(bench)).json()["store"] is False


@pytest.mark.parametrize("limit", [4, None])
async def test_the_stream_tells_the_plain_answer_in_openais_order(bench: Bench, limit: int | None) -> None:
    asked = {"model": "fake", "input": "hello", "temperature": 0, "max_output_tokens": limit}
    async with sdk(bench) as client:
        plain = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
    end = "completed" if limit is None else "incomplete"
    kinds = [event.type for event in events]
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{end}",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == plain.output_text
    last = events[-1].response
    assert shape(last) == shape(plain)
    assert (last.usage, last.status, last.incomplete_details) == (plain.usage, end, plain.incomplete_details)
    assert (plain.incomplete_details and plain.incomplete_details.reason) == (limit and "max_output_tokens")
    assert events[0].response.status == "in_progress"
    assert events[0].response.id == last.id


async def test_the_sdks_stream_helper_folds_our_events(bench: Bench) -> None:
    asked = {"model": "fake", "input": "click, then wait", "tools": [CLICK, WAIT]}
    async with sdk(bench) as client:
        plain = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            folded = await stream.get_final_response()
        async with client.responses.stream(model="fake", input="hello", temperature=0) as stream:
            texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            said = (await stream.get_final_response()).output_text
    assert shape(plain) == [
        ("function_call", "completed", "click", '{"x": 0, "kind": "left"}'),
        ("function_call", "completed", "wait", "{}"),
    ]
    assert shape(folded) == shape(plain)
    assert kinds.count("response.function_call_arguments.done") == 2
    assert kinds.count("response.function_call_arguments.delta") == 4
    assert texts[-1] == said


async def test_every_event_carries_its_name_and_nothing_follows_the_last(bench: Bench) -> None:
    blocks = (await post(bench, stream=True, max_output_tokens=2)).text.strip().split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "response.incomplete" in blocks[-1]


async def test_an_answer_parsed_into_a_model(bench: Bench) -> None:
    class Spot(BaseModel):
        x: int
        label: str

    async with sdk(bench) as client:
        answer = await client.responses.parse(model="fake", input="where?", text_format=Spot)
    assert answer.output_parsed == Spot(x=0, label="fake")
    assert answer.text.format.type == "json_schema"


async def test_a_conversation_goes_on_after_a_call_and_its_result(bench: Bench) -> None:
    async with sdk(bench) as client:
        asked = {"model": "fake", "tools": [CLICK, WAIT]}
        first = await client.responses.create(**asked, input="hello", tool_choice={"type": "function", "name": "wait"})
        (call,) = first.output
        assert (call.type, call.name, call.arguments) == ("function_call", "wait", "{}")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "it is late"}
        items = [{"role": "user", "content": "hello"}, *first.output, result]
        second = await client.responses.create(**asked, input=items)
        assert "it is late" in second.output_text
        items += [*[one.model_dump() for one in second.output], {"role": "user", "content": "and now?"}]
        third = await client.responses.create(**asked, input=items)
    assert "and now?" in third.output_text


def test_items_become_drafts_and_fields_the_tasks_own() -> None:
    body = {
        "input": [
            {"role": "developer", "content": "be exact"},
            {
                "type": "message",
                "role": "user",
                "content": [TEXT, {**PICTURE, "detail": "low"}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "I click", "annotations": []}]},
            CALL,
            {**CALL, "call_id": "c2"},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [TEXT, PICTURE],
            },
        ],
        "instructions": "be brief",
        "tools": [CLICK],
        "tool_choice": "required",
        "max_output_tokens": 9,
        "top_p": 0.5,
        "text": {"format": {"type": "json_object"}},
    }
    made = to_call(ResponsesRequest.model_validate(body), ApiSettings(temperature_default=0.5), "id", Defaults())

    def shown(options: ImageOptions, place: str) -> ImageRef:
        return ImageRef(PICTURE["image_url"], options, f"{place}.image_url", Pages(param=f"{place}.pages"))

    assert made.drafts == (
        Draft("system", (Text("be brief"),)),
        Draft("system", (Text("be exact"),)),
        Draft("user", (Text("t"), shown(ImageOptions("low"), "input.1.content.1"))),
        Draft("assistant", (Text("I click"), ToolCall("c1", "click", '{"x": 1}'), ToolCall("c2", "click", '{"x": 1}'))),
        Draft("tool", (Text("t"), shown(ImageOptions(), "input.5.output.1")), "c1"),
    )
    assert made.sampling == Sampling(max_tokens=9, temperature=0.5, top_p=0.5)
    assert made.schema == '{"type": "object"}'
    assert made.tools == ToolUse(
        (Tool("click", "Click", json.dumps(PLACE), "tools.0.parameters"),), ToolChoice("required")
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "store": False, "background": False},
        {"truncation": "disabled", "service_tier": "auto", "include": [], "top_logprobs": 0, "tools": []},
        {"reasoning": None, "previous_response_id": None, "tool_choice": "auto", "text": {"format": {"type": "text"}}},
    ],
)
async def test_fields_that_rightly_change_nothing_change_nothing(bench: Bench, fields: dict[str, object]) -> None:
    made, plain = (await post(bench, temperature=0, **fields)).json(), (await post(bench, temperature=0)).json()
    assert made["output"][0]["content"] == plain["output"][0]["content"]


def said(*parts: object, role: str = "user") -> dict[str, object]:
    return {"input": [{"role": role, "content": list(parts)}]}


HELLO = {"role": "user", "content": "hello"}
WRONG = {
    "an unknown field": ({"messages": []}, "messages", "unknown field"),
    "stored answers": ({"store": True}, "store", "not supported"),
    "an earlier answer": ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
    "work in the background": ({"background": True}, "background", "not supported"),
    "a kept conversation": ({"conversation": "conv_1"}, "conversation", "not supported"),
    "a cut conversation": ({"truncation": "auto"}, "truncation", "not supported"),
    "more in the answer": ({"include": ["reasoning.encrypted_content"]}, "include", "not supported"),
    "reasoning": ({"reasoning": {"effort": "low"}}, "reasoning", "not supported"),
    "no input": ({"input": []}, "input", "empty"),
    "an empty input": ({"input": ""}, "input", "array"),
    "an item of no type": ({"input": [{}]}, "input.0.type", "message"),
    "an item of another kind": ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "`item_reference`"),
    "an unknown role": ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "'tool'"),
    "an empty question": ({"input": [{"role": "user", "content": ""}]}, "input.0.content", "empty"),
    "a part of chat's": (said({"type": "text", "text": "x"}), "input.0.content.0.type", "`text` is not supported"),
    "a stored file": (said({"type": "input_file", "file_id": "f"}), "input.0.content.0.file_id", "no files are kept"),
    "a file of nothing": (said({"type": "input_file"}), "input.0.content.0.file_data", "send either it or file_url"),
    "a file twice": (
        said({"type": "input_file", "file_data": "x", "file_url": "https://x/y"}),
        "input.0.content.0.file_data",
        "send either it or file_url",
    ),
    "a picture by its id": (
        said({"type": "input_image", "file_id": "f", "image_url": "x"}),
        "input.0.content.0.file_id",
        "not supported",
    ),
    "a picture of nothing": (said({"type": "input_image", "image_url": ""}), "input.0.content.0.image_url", "1"),
    "a picture that is none": (
        said({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}),
        "input.0.content.0.image_url",
        "not a picture",
    ),
    "a picture from the system": (said(PICTURE, role="system"), "input.0.content.0", "a user's"),
    "an answer's text from a user": (
        said({**TEXT, "type": "output_text"}),
        "input.0.content.0.type",
        "input_text",
    ),
    "a conversation that ends with an answer": (
        {"input": [HELLO, {"role": "assistant", "content": "x"}]},
        "input.1",
        "must be a user's message",
    ),
    "a result of no call": (
        {"input": [HELLO, {"type": "function_call_output", "call_id": "c9", "output": "x"}]},
        "input.1.call_id",
        "'c9'",
    ),
    "a call whose arguments are no JSON": (
        {"input": [HELLO, {**CALL, "arguments": "{"}]},
        "input.1.arguments",
        "JSON object",
    ),
    "a tool of another kind": ({"tools": [{"type": "web_search_preview"}]}, "tools.0.type", "`web_search_preview`"),
    "two tools of one name": ({"tools": [CLICK, CLICK]}, "tools.1.name", "two tools"),
    "parameters that are no object": (
        {"tools": [{**WAIT, "parameters": {"type": "array"}}]},
        "tools.0.parameters.type",
        "'object'",
    ),
    "a choice of an unknown tool": (
        {"tools": [WAIT], "tool_choice": {"type": "function", "name": "click"}},
        "tool_choice.name",
        "'wait'",
    ),
    "an unknown choice": ({"tools": [WAIT], "tool_choice": "any"}, "tool_choice", "none, auto, required"),
    "an unknown format": ({"text": {"format": {"type": "xml"}}}, "text.format.type", "`xml`"),
    "a format without its schema": (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "missing",
    ),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens", "it is 0"),
    "stream options without a stream": ({"stream": False, "stream_options": {}}, "stream_options", "stream: true"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_request_is_400_and_names_its_field(bench: Bench, what: str) -> None:
    fields, param, words = WRONG[what]
    for stream in ({}, {"stream": True}):
        response = await post(bench, **{**stream, **fields})
        error = response.json()["error"]
        assert response.status_code == 400, error
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]
    assert (await post(bench)).status_code == 200
    assert bench.admission.taken == 0


async def test_what_tasks_and_engines_refuse_has_this_dialects_names(build: Callable[..., Bench]) -> None:
    async with sdk(build(FakeScript(context_tokens=3))) as client:
        with pytest.raises(openai.BadRequestError) as long:
            await client.responses.create(model="fake", input="a b c d", stream=True)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="other", input="hello")
    async with sdk(build(card=replace(CARD, capabilities=("chat",)))) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="fake", input="hello", tools=[WAIT])
        assert refused.value.param == "tools"


async def test_an_error_in_mid_stream_is_raised_by_the_sdk(build: Callable[..., Bench]) -> None:
    async with sdk(build(FakeScript(fail_after=2))) as client:
        stream = await client.responses.create(model="fake", input="hello", stream=True)
        seen = [(await anext(stream)).type for _ in range(6)]
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
    assert seen[-1] == "response.output_text.delta"
    assert caught.value.code == "engine_error"


class Filtered(FakeEngine):
    """Ends every answer as a server with a filter does that does not like it."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield replace(event, reason="content_filter") if isinstance(event, Finished) else event


async def test_an_answer_that_a_filter_cut_is_told_in_openais_words(build: Callable[..., Bench]) -> None:
    engine = Filtered()
    await engine.start()
    asked = {"model": "fake", "input": "hello"}
    async with sdk(build(engine=engine)) as client:
        chat = await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hello"}])
        plain = await client.responses.create(**asked)
        last = [event async for event in await client.responses.create(**asked, stream=True)][-1]
    assert chat.choices[0].finish_reason == "content_filter"
    assert last.type == "response.incomplete"
    for response in (plain, last.response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
