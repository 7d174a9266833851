"""OpenAI's Python SDK against running servers; run by pytest in .clients/python, a class a feature."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

PEEK, FAKE, CALLER, NARROW = (os.environ[f"CLIENTS_{name}"] + "/v1" for name in ("PEEK", "FAKE", "CALLER", "NARROW"))
PICTURES = os.environ["CLIENTS_PICTURES"]
PICTURE = Path(os.environ["CLIENTS_FOLDER"], "screenshot.png").read_bytes()
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
KEY = os.environ["CLIENTS_KEY"]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
PRESS = {
    "type": "function",
    "function": {
        "name": "press",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "enum": ["enter", "escape"]}, "held": {"type": "boolean"}},
            "required": ["key", "held"],
            "additionalProperties": False,
        },
    },
}
FLAT_WEATHER = {"type": "function", **WEATHER["function"]}


class Screen(BaseModel):
    kind: Literal["form", "menu"]
    busy: bool


@pytest.fixture
def peek() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=PEEK, api_key="none") as client:
        yield client


@pytest.fixture
def fake() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=FAKE, api_key=KEY) as client:
        yield client


def user(text: str, *pictures: str) -> list[dict[str, object]]:
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


class TestChat:
    def test_an_answer_with_its_usage(self, peek: openai.OpenAI) -> None:
        answer = peek.chat.completions.create(model="peek", messages=user("hello"), max_tokens=8)
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_a_conversation_with_every_role(self, peek: openai.OpenAI) -> None:
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "hello", "name": "ann"},
            {"role": "assistant", "content": "hello"},
            *user("again"),
        ]
        assert peek.chat.completions.create(model="peek", messages=messages, max_tokens=8).choices

    def test_an_answer_of_ours_is_sent_back_as_it_came(self, peek: openai.OpenAI) -> None:
        first = peek.chat.completions.create(model="peek", messages=user("hello"), max_tokens=8)
        messages = [*user("hello"), first.choices[0].message, *user("again")]
        assert peek.chat.completions.create(model="peek", messages=messages, max_tokens=8).choices

    def test_several_answers_and_log_probabilities(self, peek: openai.OpenAI) -> None:
        answer = peek.chat.completions.create(
            model="peek", messages=user("hello"), n=2, logprobs=True, top_logprobs=2, max_tokens=4, seed=1
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2

    def test_a_stop_text(self, fake: openai.OpenAI) -> None:
        answer = fake.chat.completions.create(model="fake", messages=user("one two"), stop=["two"])
        assert "one" in answer.choices[0].message.content
        assert "two" not in answer.choices[0].message.content

    def test_the_models(self, peek: openai.OpenAI) -> None:
        assert [model.id for model in peek.models.list()] == ["peek"]
        assert peek.models.retrieve("peek").object == "model"

    async def test_the_asynchronous_client(self) -> None:
        async with openai.AsyncOpenAI(base_url=PEEK, api_key="none") as client:
            answer = await client.chat.completions.create(model="peek", messages=user("hello"), max_tokens=8)
        assert answer.choices[0].finish_reason in ("stop", "length")


class TestStreaming:
    def test_it_says_what_the_plain_answer_says(self, peek: openai.OpenAI) -> None:
        asked = {"model": "peek", "messages": user("Describe the screen.", DATA_URL), "temperature": 0}
        plain = peek.chat.completions.create(**asked)
        chunks = list(peek.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == plain.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens

    def test_the_sdks_helper_folds_it(self, peek: openai.OpenAI) -> None:
        messages = user("Describe the screen.", DATA_URL)
        with peek.chat.completions.stream(model="peek", messages=messages, temperature=0) as stream:
            kinds = {event.type for event in stream}
            folded = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert folded.choices[0].message.content

    def test_closing_it_early_leaves_the_server_free(self, peek: openai.OpenAI) -> None:
        for _ in range(20):
            stream = peek.chat.completions.create(model="peek", messages=user("hello"), stream=True)
            next(iter(stream))
            stream.close()
        assert peek.chat.completions.create(model="peek", messages=user("hello"), max_tokens=2).choices

    async def test_the_asynchronous_client(self) -> None:
        async with openai.AsyncOpenAI(base_url=PEEK, api_key="none") as client:
            stream = await client.chat.completions.create(
                model="peek", messages=user("hello"), max_tokens=8, stream=True
            )
            assert [chunk async for chunk in stream][-1].choices[0].finish_reason


class TestImages:
    def test_a_data_url_is_seen(self, fake: openai.OpenAI) -> None:
        answer = fake.chat.completions.create(model="fake", messages=user("look", DATA_URL))
        assert "x" in answer.choices[0].message.content.partition("[")[2].partition("]")[0]
        assert answer.usage.prompt_tokens_details.to_dict()["image_tokens"] > 0

    def test_a_picture_on_the_web_is_the_same_picture(self, peek: openai.OpenAI) -> None:
        said = {
            peek.chat.completions.create(model="peek", messages=user("Describe the screen.", url), temperature=0)
            .choices[0]
            .message.content
            for url in (DATA_URL, f"{PICTURES}/screenshot.png")
        }
        assert len(said) == 1

    def test_several_pictures_with_a_detail(self, fake: openai.OpenAI) -> None:
        messages = user("look", DATA_URL, DATA_URL)
        for part in messages[0]["content"][:2]:
            part["image_url"]["detail"] = "auto"
        answer = fake.chat.completions.create(model="fake", messages=messages)
        assert answer.choices[0].message.content.count("[") == 2


class TestJsonSchema:
    def test_an_answer_is_parsed_into_a_class(self, peek: openai.OpenAI) -> None:
        answer = peek.chat.completions.parse(
            model="peek", messages=user("Describe the screen.", DATA_URL), response_format=Screen
        )
        assert isinstance(answer.choices[0].message.parsed, Screen)

    def test_a_stream_is_parsed_into_a_class(self, peek: openai.OpenAI) -> None:
        with peek.chat.completions.stream(model="peek", messages=user("hello"), response_format=Screen) as stream:
            folded = stream.get_final_completion()
        assert isinstance(folded.choices[0].message.parsed, Screen)

    def test_responses_are_parsed_into_a_class(self, peek: openai.OpenAI) -> None:
        answer = peek.responses.parse(model="peek", input="hello", text_format=Screen)
        assert isinstance(answer.output_parsed, Screen)

    def test_any_json_object(self, fake: openai.OpenAI) -> None:
        answer = fake.chat.completions.create(
            model="fake", messages=user("hello"), response_format={"type": "json_object"}
        )
        assert json.loads(answer.choices[0].message.content) == {}


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
    def test_a_required_call(self, fake: openai.OpenAI, choice: object) -> None:
        answer = fake.chat.completions.create(model="fake", messages=user("hello"), tools=[WEATHER], tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, json.loads(call.function.arguments)["unit"]) == ("get_weather", "C")

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "press"}}])
    @pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
    def test_a_models_call_is_held_to_its_schema(self, choice: object, stream: bool) -> None:
        asked = {"model": "caller", "messages": user("Press it.", DATA_URL), "tools": [PRESS], "tool_choice": choice}
        with openai.OpenAI(base_url=CALLER, api_key="none") as client:
            if stream:
                with client.chat.completions.stream(**asked) as running:
                    answer = running.get_final_completion()
            else:
                answer = client.chat.completions.create(**asked)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "press"
        arguments = json.loads(call.function.arguments)
        assert arguments["key"] in ("enter", "escape")
        assert isinstance(arguments["held"], bool)

    def test_a_call_and_its_result_go_back(self, fake: openai.OpenAI) -> None:
        asked = {"model": "fake", "tools": [WEATHER], "parallel_tool_calls": False}
        messages = user("use get_weather")
        first = fake.chat.completions.create(**asked, messages=messages).choices[0].message
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
        last = fake.chat.completions.create(**asked, messages=[*messages, first, result]).choices[0]
        assert (last.finish_reason, last.message.tool_calls) == ("stop", None)
        assert "sunny" in last.message.content

    def test_a_streamed_call(self, fake: openai.OpenAI) -> None:
        with fake.chat.completions.stream(
            model="fake", messages=user("hello"), tools=[WEATHER], tool_choice="required"
        ) as stream:
            kinds = [event.type for event in stream]
            folded = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        assert folded.choices[0].message.tool_calls[0].function.parsed_arguments["unit"] == "C"

    def test_no_tool_is_called_when_none_is_the_choice(self, fake: openai.OpenAI) -> None:
        answer = fake.chat.completions.create(
            model="fake", messages=user("use get_weather"), tools=[WEATHER], tool_choice="none"
        )
        assert answer.choices[0].message.tool_calls is None

    def test_a_call_of_responses_and_its_result_go_back(self, fake: openai.OpenAI) -> None:
        asked = {"model": "fake", "tools": [FLAT_WEATHER]}
        history: list[object] = [{"role": "user", "content": "use get_weather"}]
        first = fake.responses.create(**asked, input=history)
        (call,) = first.output
        assert (call.type, call.name) == ("function_call", "get_weather")
        history += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
        assert "sunny" in fake.responses.create(**asked, input=history).output_text

    def test_a_call_of_responses_goes_back_as_the_sdk_writes_it_out(self, fake: openai.OpenAI) -> None:
        asked = {"model": "fake", "tools": [FLAT_WEATHER]}
        history: list[object] = [{"role": "user", "content": "use get_weather"}]
        call = fake.responses.create(**asked, input=history).output[0]
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        assert fake.responses.create(**asked, input=[*history, call.model_dump(), output]).output_text


class TestResponses:
    def test_a_text_and_a_picture(self, peek: openai.OpenAI) -> None:
        parts = [
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            {"type": "input_text", "text": "Describe the screen."},
        ]
        answer = peek.responses.create(model="peek", input=[{"role": "user", "content": parts}], temperature=0)
        assert answer.output_text
        assert answer.usage.total_tokens > 0

    def test_a_stream(self, peek: openai.OpenAI) -> None:
        parts = [{"type": "input_image", "image_url": DATA_URL}, {"type": "input_text", "text": "Describe the screen."}]
        history = [{"role": "user", "content": parts}]
        with peek.responses.stream(model="peek", input=history, temperature=0) as stream:
            kinds = [event.type for event in stream]
            folded = stream.get_final_response()
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert folded.output_text

    def test_a_whole_answer_goes_back_as_it_came(self, peek: openai.OpenAI) -> None:
        first = peek.responses.create(model="peek", input="hello", max_output_tokens=16)
        history = [{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "again"}]
        assert peek.responses.create(model="peek", input=history, max_output_tokens=16).output


class TestErrors:
    def test_a_wrong_key(self) -> None:
        with openai.OpenAI(base_url=FAKE, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()

    def test_a_model_that_is_not_there(self, peek: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            peek.chat.completions.create(model="gpt", messages=user("hello"))
        assert caught.value.code == "model_not_found"

    def test_a_picture_that_is_none(self, peek: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            peek.chat.completions.create(model="peek", messages=user("look", "data:image/png;base64,aGk="))
        assert caught.value.param == "messages.0.content.0.image_url"

    def test_a_field_that_is_unknown(self, peek: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            peek.chat.completions.create(model="peek", messages=user("hello"), extra_body={"guess": 1})
        assert (caught.value.param, caught.value.code) == ("guess", "unknown_field")

    def test_a_prompt_that_is_too_long_is_refused_before_the_stream(self, peek: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            peek.chat.completions.create(model="peek", messages=user("long " * 20_000), stream=True)
        assert caught.value.code == "context_length_exceeded"


class TestRetries:
    def test_a_full_queue_is_an_error_at_once_and_with_retries_an_answer(self) -> None:
        with openai.OpenAI(base_url=NARROW, api_key="none", max_retries=0) as client:
            # The one place in the queue is held for as long as the picture takes to come.
            patient = client.with_options(max_retries=20)
            slow = {"model": "fake", "messages": user("look", f"{PICTURES}/slow/screenshot.png")}
            holding = threading.Thread(target=lambda: patient.chat.completions.create(**slow))
            holding.start()
            with pytest.raises(openai.RateLimitError) as caught:  # noqa: PT012 (it takes a moment to hold the place)
                while holding.is_alive():
                    client.chat.completions.create(model="fake", messages=user("hello"), max_tokens=1)
            assert caught.value.code == "queue_full"
            raw = patient.chat.completions.with_raw_response.create(model="fake", messages=user("hello"))
            holding.join()
        assert raw.retries_taken > 0
        assert raw.parse().choices[0].message.content
