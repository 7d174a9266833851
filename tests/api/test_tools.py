"""Tools in chat, with OpenAI's own SDK as the client: offered, called, answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import openai
import pytest

from onsight.api.openai.calls import to_call
from onsight.api.openai.wire import ChatRequest
from onsight.api.services import ApiSettings
from onsight.core.messages import Draft, Text
from onsight.core.tools import NO_PARAMETERS, Tool, ToolCall, ToolChoice, ToolUse
from onsight.models.card import Defaults
from tests.api.conftest import CARD, Bench, events, hello
from tests.api.test_sdk import sdk

PLACE = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "kind": {"enum": ["left", "right"]}},
    "required": ["x", "kind"],
    "additionalProperties": False,
}
CLICK = {
    "type": "function",
    "function": {"name": "click", "description": "Click", "parameters": PLACE, "strict": True},
}
WAIT = {"type": "function", "function": {"name": "wait"}}
ASKED: dict[str, object] = {"model": "fake", "messages": hello(), "tools": [CLICK, WAIT]}


async def test_a_required_call_is_the_whole_answer(bench: Bench) -> None:
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(**ASKED, tool_choice="required")
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "click")
    assert json.loads(call.function.arguments) == {"x": 0, "kind": "left"}
    assert call.id.startswith("call_")


async def test_a_named_function_is_the_one_that_is_called(bench: Bench) -> None:
    named = {"type": "function", "function": {"name": "wait"}}
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(**ASKED, tool_choice=named)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("wait", "{}")


async def test_a_free_choice_may_say_something_or_call(bench: Bench) -> None:
    async with sdk(bench) as client:
        said = (await client.chat.completions.create(**ASKED)).choices[0]
        asked = {**ASKED, "messages": hello("please wait")}
        called = (await client.chat.completions.create(**asked, tool_choice="auto")).choices[0]
    assert (said.finish_reason, said.message.tool_calls) == ("stop", None)
    assert "fake engine" in said.message.content
    assert (called.finish_reason, called.message.tool_calls[0].function.name) == ("tool_calls", "wait")


async def test_a_choice_of_none_hides_the_tools(bench: Bench) -> None:
    async with sdk(bench) as client:
        asked = {**ASKED, "messages": hello("please wait")}
        answer = await client.chat.completions.create(**asked, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(("parallel", "count"), [(None, 2), (True, 2), (False, 1)])
async def test_several_calls_are_made_unless_that_is_off(bench: Bench, parallel: bool | None, count: int) -> None:
    asked = {**ASKED, "messages": hello("click, then wait")}
    more = {} if parallel is None else {"parallel_tool_calls": parallel}
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(**asked, **more)
    assert len(answer.choices[0].message.tool_calls) == count


async def test_the_sdks_stream_helper_folds_calls_into_the_plain_answer(bench: Bench) -> None:
    asked = {**ASKED, "messages": hello("click, then wait")}
    async with sdk(bench) as client:
        plain = await client.chat.completions.create(**asked)
        async with client.chat.completions.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            folded = await stream.get_final_completion()
    shape = [(call.type, call.function.name, call.function.arguments) for call in plain.choices[0].message.tool_calls]
    (choice,) = folded.choices
    assert [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == shape
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert kinds.count("tool_calls.function.arguments.done") == 2


async def test_a_streamed_call_gives_its_id_and_name_first_then_its_arguments_in_pieces(bench: Bench) -> None:
    response = await bench.chat(tools=[CLICK], tool_choice="required", stream=True)
    *chunks, last = events(response)
    assert last == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    (first,) = deltas[1]["tool_calls"]
    assert (first["index"], first["type"], first["function"]) == (0, "function", {"name": "click", "arguments": ""})
    assert first["id"].startswith("call_")
    rest = [delta["tool_calls"][0] for delta in deltas[2:-1]]
    assert len(rest) > 1
    assert all(set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in rest)
    assert json.loads("".join(piece["function"]["arguments"] for piece in rest)) == {"x": 0, "kind": "left"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


async def test_a_conversation_goes_on_after_the_calls_result(bench: Bench) -> None:
    async with sdk(bench) as client:
        first = await client.chat.completions.create(**ASKED, tool_choice="required")
        message = first.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "the menu is open"}
        second = await client.chat.completions.create(**{**ASKED, "messages": [*hello(), message.model_dump(), result]})
    assert "the menu is open" in second.choices[0].message.content
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


async def test_every_answer_of_several_has_its_own_calls(bench: Bench) -> None:
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(**ASKED, tool_choice="required", n=3)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
    assert len(ids) == 3


async def test_a_model_that_cannot_call_says_so(build: Callable[..., Bench]) -> None:
    bench = build(card=replace(CARD, capabilities=("chat", "ocr")))
    async with sdk(bench) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ASKED)
        assert (refused.value.param, refused.value.code) == ("tools", "unsupported")
        assert "it offers chat, ocr" in refused.value.message
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        history = [*hello(), {"role": "assistant", "tool_calls": [call]}, *hello()]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="fake", messages=history)
        assert refused.value.param == "messages"


def test_tools_and_calls_reach_the_task_as_its_own_types() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "click", "arguments": '{"x": 1}'}}
    body = {
        "messages": [
            *hello(),
            {"role": "assistant", "content": "I click.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ],
        "tools": [CLICK, WAIT],
        "tool_choice": {"type": "function", "function": {"name": "wait"}},
        "parallel_tool_calls": False,
    }
    made = to_call(ChatRequest.model_validate(body), ApiSettings(), "id", Defaults())
    assert made.drafts[1:] == (
        Draft("assistant", (Text("I click."), ToolCall("c1", "click", '{"x": 1}'))),
        Draft("tool", (Text("ok"),), "c1"),
    )
    assert made.tools == ToolUse(
        (
            Tool("click", "Click", json.dumps(PLACE), "tools.0.function.parameters"),
            Tool("wait", "", NO_PARAMETERS, "tools.1.function.parameters"),
        ),
        ToolChoice("required", "wait"),
        False,
    )
