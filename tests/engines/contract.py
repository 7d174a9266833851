"""What every engine must do, as one suite: subclass `EngineContract` and give an `engine` fixture that is started."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from onsight.core.engine import ChatEngine
from onsight.core.errors import ContextTooLong, InvalidRequest, Unavailable
from onsight.core.generation import Event, Finished, GenerateRequest, Sampling, TextDelta, ToolCallDelta
from onsight.core.messages import Image, Message, Text
from onsight.core.tools import Tool, ToolCall, ToolChoice, ToolUse


def solid(colour: tuple[int, int, int], width: int = 64, height: int = 48) -> Image:
    """A picture of one colour."""
    return Image.of(bytes(colour) * (width * height), width, height)


def ask(text: str, *images: Image, sampling: Sampling | None = None, schema: str | None = None) -> GenerateRequest:
    """One user turn, pictures first; 12 greedy tokens unless told otherwise."""
    chosen = sampling or Sampling(max_tokens=12, temperature=0.0)
    return GenerateRequest((Message("user", (*images, Text(text))),), chosen, schema)


async def events_of(engine: ChatEngine, request: GenerateRequest) -> list[Event]:
    async with aclosing(engine.generate(request)) as stream:
        return [event async for event in stream]


async def text_of(engine: ChatEngine, request: GenerateRequest) -> str:
    return "".join(event.text for event in await events_of(engine, request) if isinstance(event, TextDelta))


def _number(most: int) -> dict[str, object]:
    return {"type": "integer", "minimum": 0, "maximum": most}


CLICK = Tool(
    "click",
    "Click a place",
    json.dumps(
        {
            "type": "object",
            "properties": {"x": _number(99), "button": {"enum": ["left", "right"]}},
            "required": ["x", "button"],
            "additionalProperties": False,
        }
    ),
    "tools.0.function.parameters",
)
WAIT = Tool("wait")


def calling(text: str, *tools: Tool, seed: int = 1, parallel: bool | None = None, **choice: object) -> GenerateRequest:
    """One user turn that offers `tools`; a call is required unless `mode` says otherwise."""
    chosen = ToolChoice(**{"mode": "required"} | choice)  # type: ignore[arg-type]
    request = ask(text, sampling=Sampling(max_tokens=150, temperature=1.0, seed=seed))
    return replace(request, tools=ToolUse(tools or (CLICK, WAIT), chosen, parallel))


def calls_of(events: list[Event]) -> list[ToolCall]:
    """The calls in an answer's events, whose order is checked on the way."""
    calls: list[ToolCall] = []
    for event in events:
        if isinstance(event, ToolCallDelta) and event.id is not None:
            assert event.index == len(calls)
            calls.append(ToolCall(event.id, event.name or "", event.arguments))
        elif isinstance(event, ToolCallDelta):
            assert event.index == len(calls) - 1
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + event.arguments)
    return calls


def check_call(call: ToolCall) -> None:
    """The call keeps to the parameters of the tool that it names."""
    arguments = json.loads(call.arguments)
    if call.name == "wait":
        assert arguments == {}
        return
    assert call.name == "click"
    assert set(arguments) == {"x", "button"}
    assert 0 <= arguments["x"] <= 99
    assert arguments["button"] in ("left", "right")


async def idle(engine: ChatEngine) -> None:
    """Wait until nothing runs or waits in the engine."""
    async with asyncio.timeout(20):
        while engine.status().running or engine.status().waiting:
            await asyncio.sleep(0.005)


class EngineContract:
    """The suite. Subclasses provide the fixture `engine`."""

    async def test_a_request_finishes_exactly_once_and_last(self, engine: ChatEngine) -> None:
        events = await events_of(engine, ask("What is here?", solid((200, 10, 10))))
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, Finished) for event in events) == 1

    async def test_usage_counts_what_was_sent_and_said(self, engine: ChatEngine) -> None:
        request = ask("one two three", solid((1, 2, 3)), sampling=Sampling(max_tokens=5, temperature=0.0))
        end = (await events_of(engine, request))[-1]
        assert isinstance(end, Finished)
        assert end.usage.prompt_tokens > end.usage.image_tokens > 0
        assert 1 <= end.usage.completion_tokens <= 5
        assert end.usage.cached_tokens < end.usage.prompt_tokens

    async def test_max_tokens_ends_an_answer_with_length(self, engine: ChatEngine) -> None:
        end = (await events_of(engine, ask("go on", sampling=Sampling(max_tokens=1, temperature=0.0))))[-1]
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.completion_tokens) == ("length", 1)

    async def test_closing_the_generator_frees_its_place(self, engine: ChatEngine) -> None:
        stream = engine.generate(ask("a long story", sampling=Sampling(max_tokens=200, temperature=0.0)))
        await anext(stream)
        await stream.aclose()
        await idle(engine)
        assert await text_of(engine, ask("still there?"))

    async def test_cancelling_the_reader_frees_its_place(self, engine: ChatEngine) -> None:
        reader = asyncio.create_task(events_of(engine, ask("x", sampling=Sampling(max_tokens=300, temperature=1.0))))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await idle(engine)

    async def test_a_stop_text_ends_the_answer_before_itself(self, engine: ChatEngine) -> None:
        request = ask("say something", sampling=Sampling(max_tokens=24, temperature=0.0))
        whole = await text_of(engine, request)
        assert len(whole) >= 6
        stop = whole[3:5]
        events = await events_of(engine, replace(request, sampling=replace(request.sampling, stop=(stop,))))
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert text == whole[: whole.index(stop)]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "stop"

    async def test_the_same_seed_gives_the_same_answer(self, engine: ChatEngine) -> None:
        request = ask("draw lots", sampling=Sampling(max_tokens=12, temperature=1.5, seed=7))
        other = replace(request, sampling=replace(request.sampling, seed=8))
        assert await text_of(engine, request) == await text_of(engine, request)
        assert await text_of(engine, request) != await text_of(engine, other)

    async def test_two_requests_interleave(self, engine: ChatEngine) -> None:
        first = engine.generate(ask("first", sampling=Sampling(max_tokens=64, temperature=0.0)))
        async with aclosing(first):
            assert isinstance(await anext(first), TextDelta)
            # The second one is answered while the first one is not read to its end.
            assert await text_of(engine, ask("second", sampling=Sampling(max_tokens=4, temperature=0.0)))

    async def test_requests_side_by_side_get_what_they_get_alone(self, engine: ChatEngine) -> None:
        requests = [ask(f"question {i} " * (i + 1), solid((40 * i, 250 - 40 * i, 90))) for i in range(5)]
        alone = [await text_of(engine, request) for request in requests]
        assert list(await asyncio.gather(*(text_of(engine, request) for request in requests))) == alone
        assert len(set(alone)) > 1

    async def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(self, engine: ChatEngine) -> None:
        request = ask("word " * (engine.context_tokens + 1))
        with pytest.raises(ContextTooLong, match=str(engine.context_tokens)):
            await events_of(engine, request)
        assert await text_of(engine, ask("and now?"))

    async def test_logprobs_come_one_a_token_with_the_likeliest_beside_it(self, engine: ChatEngine) -> None:
        sampling = Sampling(max_tokens=6, temperature=0.0, logprobs=True, top_logprobs=3)
        events = await events_of(engine, ask("count", sampling=sampling))
        tokens = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
        end = events[-1]
        assert isinstance(end, Finished)
        # A token that ends the answer is counted, but is none of its text.
        assert end.usage.completion_tokens - len(tokens) in (0, int(end.reason == "stop"))
        for token in tokens:
            assert len(token.top) == 3
            assert token.chosen.logprob <= 0.0
            assert token.top[0].logprob == max(candidate.logprob for candidate in token.top)

    async def test_a_schema_is_kept(self, engine: ChatEngine) -> None:
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["button", "field"]}, "on": {"type": "boolean"}},
            "required": ["kind", "on"],
            "additionalProperties": False,
        }
        request = ask("which?", sampling=Sampling(max_tokens=250, temperature=1.0, seed=1), schema=json.dumps(schema))
        answer = json.loads(await text_of(engine, request))
        assert set(answer) == {"kind", "on"}
        assert answer["kind"] in ("button", "field")

    async def test_a_schema_that_is_none_is_refused(self, engine: ChatEngine) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await events_of(engine, ask("x", schema='"not a schema"'))
        assert caught.value.param == "response_format"

    async def test_a_required_call_is_the_whole_answer_and_keeps_to_its_schema(self, engine: ChatEngine) -> None:
        made = []
        for seed in range(4):
            events = await events_of(engine, calling("go", seed=seed, parallel=False))
            assert not any(isinstance(event, TextDelta) for event in events)
            assert isinstance(events[-1], Finished)
            assert events[-1].reason == "tool_calls"
            made += calls_of(events)
        assert len(made) == 4
        assert len({call.id for call in made}) == 4
        for call in made:
            check_call(call)

    async def test_a_named_tool_is_the_one_that_is_called(self, engine: ChatEngine) -> None:
        for name in ("click", "wait"):
            (call,) = calls_of(await events_of(engine, calling("go", mode="required", name=name)))
            assert call.name == name
            check_call(call)

    async def test_a_free_choice_is_text_or_calls_that_keep_to_their_schemas(self, engine: ChatEngine) -> None:
        events = await events_of(engine, calling("hello", mode="auto"))
        calls = calls_of(events)
        for call in calls[:-1]:
            check_call(call)
        said = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert said or calls
        assert isinstance(events[-1], Finished)
        assert (events[-1].reason == "tool_calls") == bool(calls) or events[-1].reason == "length"

    async def test_calls_and_their_results_are_part_of_a_history(self, engine: ChatEngine) -> None:
        history = (
            Message("user", (Text("click the button"), solid((9, 9, 200)))),
            Message("assistant", (ToolCall("call_1", "click", '{"x": 4, "button": "left"}'),)),
            Message("tool", (Text("done"),), "call_1"),
        )
        request = replace(calling("x"), messages=history, tools=None)
        with_result = (await events_of(engine, request))[-1]
        shorter = (await events_of(engine, replace(request, messages=history[:1])))[-1]
        assert isinstance(with_result, Finished)
        assert isinstance(shorter, Finished)
        assert with_result.usage.prompt_tokens > shorter.usage.prompt_tokens

    async def test_parameters_that_are_no_schema_are_refused_with_their_place(self, engine: ChatEngine) -> None:
        broken = Tool("broken", parameters='"nothing"', param="tools.1.function.parameters")
        with pytest.raises(InvalidRequest) as caught:
            await events_of(engine, calling("x", CLICK, broken))
        assert caught.value.param == "tools.1.function.parameters"

    async def test_a_closed_engine_says_so(self, engine: ChatEngine) -> None:
        await engine.close()
        await engine.close()
        with pytest.raises(Unavailable):
            await events_of(engine, ask("anyone?"))

    async def test_closing_the_engine_reaches_every_waiting_caller(self, engine: ChatEngine) -> None:
        requests = [ask(f"long {i}", sampling=Sampling(max_tokens=500, temperature=1.0, seed=i)) for i in range(12)]
        readers = [asyncio.create_task(events_of(engine, request)) for request in requests]
        while not engine.status().running:
            await asyncio.sleep(0.001)
        await engine.close()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(result, (Unavailable, list)) for result in results)
        assert any(isinstance(result, Unavailable) for result in results)
