"""OpenAI's own Python SDK over a real port: what it must be able to read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import openai
import pytest
from pydantic import BaseModel

from onsight.api.keys import KeyBook
from onsight.engines.fake_engine import FakeScript
from tests.api.conftest import Bench, hello, until
from tests.api.test_openai_chat import png


@asynccontextmanager
async def sdk(bench: Bench, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with bench.served() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


async def test_a_plain_answer_and_its_usage(bench: Bench) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png()}", "detail": "auto"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "look"}, picture]}]
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(model="fake", messages=messages, temperature=0)
    assert "[32x16]" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_streamed_answer_with_usage_says_the_same(bench: Bench) -> None:
    async with sdk(bench) as client:
        asked = {"model": "fake", "messages": hello(), "temperature": 0}
        plain = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


async def test_the_sdks_own_stream_helper_folds_our_chunks(bench: Bench) -> None:
    async with sdk(bench) as client:
        async with client.chat.completions.stream(model="fake", messages=hello(), n=2, seed=1) as stream:
            folded = await stream.get_final_completion()
        plain = await client.chat.completions.create(model="fake", messages=hello(), n=2, seed=1)
    assert [c.message.content for c in folded.choices] == [c.message.content for c in plain.choices]


async def test_logprobs(bench: Bench) -> None:
    async with sdk(bench) as client:
        answer = await client.chat.completions.create(
            model="fake", messages=hello(), logprobs=True, top_logprobs=3, max_tokens=2
        )
    content = answer.choices[0].logprobs.content
    assert [token.token for token in content] == ["fake", " "]
    assert len(content[0].top_logprobs) == 3


async def test_an_answer_parsed_into_a_model(bench: Bench) -> None:
    class Spot(BaseModel):
        x: int
        y: int
        label: str

    async with sdk(bench) as client:
        answer = await client.chat.completions.parse(model="fake", messages=hello(), response_format=Spot)
    assert answer.choices[0].message.parsed == Spot(x=0, y=0, label="fake")


async def test_the_models_are_listed_and_found_though_ids_hold_slashes(bench: Bench) -> None:
    async with sdk(bench) as client:
        listed = [model.id async for model in client.models.list()]
        found = await client.models.retrieve("org/fake-2B")
    assert listed == ["fake", "org/fake-2B"]
    assert (found.id, found.to_dict()["root"], found.to_dict()["convention"]) == ("org/fake-2B", "fake", "0..1000")


async def test_errors_become_the_sdks_own(build: Callable[..., Bench]) -> None:
    async with sdk(build(keys=KeyBook("right")), key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with sdk(build(FakeScript(context_tokens=3))) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="other", messages=hello())
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model="fake", messages=hello(), tools=[])
        assert (wrong.value.param, wrong.value.type) == ("tools", "invalid_request_error")
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(model="fake", messages=hello("a b c d"), stream=True)
        assert long.value.code == "context_length_exceeded"


async def test_an_error_in_mid_stream_is_raised_by_the_sdk(build: Callable[..., Bench]) -> None:
    async with sdk(build(FakeScript(fail_after=2))) as client:
        stream = await client.chat.completions.create(model="fake", messages=hello(), stream=True)
        said = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
    assert said == ["", "fake", " "]
    assert caught.value.code == "engine_error"


async def test_closing_the_sdks_stream_frees_the_engine(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(step_s=0.2))
    async with sdk(bench) as client:
        stream = await client.chat.completions.create(model="fake", messages=hello(), stream=True)
        await anext(stream)
        await stream.close()
        await until(lambda: bench.engine.status().running == 0)
    assert bench.records[0].reason == "cancelled"
