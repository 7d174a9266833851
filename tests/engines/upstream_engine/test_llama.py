"""Peek and a tiny SmolVLM on llama.cpp: the contract, and the child that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

pytest.importorskip("xllamacpp", reason="the extra `llama` is not installed")

from onsight.core.engine import ChatEngine
from onsight.core.errors import EngineFailed, InvalidRequest, StartError, Unsupported
from onsight.core.generation import Event, GenerateRequest, Sampling
from onsight.core.messages import Message, Text
from onsight.core.tools import ToolCall
from onsight.engines.upstream_engine import Child, UpstreamEngine, UpstreamSettings
from onsight.engines.upstream_engine.llama import LlamaOptions, worker
from onsight.models.gguf import read_gguf
from tests.engines.contract import EngineContract, ask, calling, events_of, solid, text_of
from tests.tiny_models import write_smolvlm
from training.export_gguf import export_gguf
from training.model import BUNDLED

pytestmark = pytest.mark.model


@pytest.fixture(scope="session")
def peek(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export_gguf(BUNDLED, tmp_path_factory.mktemp("peek"), "peek")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = write_smolvlm(tmp_path_factory.mktemp("tiny"))
    return export_gguf(folder, tmp_path_factory.mktemp("gguf"), "tiny")


LONG = Sampling(max_tokens=900, temperature=1.0, seed=1)
ANY_LIST = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 400})


def made(files: tuple[Path, Path], reserved: frozenset[str] | None = None) -> tuple[UpstreamEngine, Child]:
    """An engine, and its child, for these files."""
    address, command = worker(LlamaOptions(str(files[0]), str(files[1]), 1024, slots=4, threads=1))
    child = Child(command)
    special = read_gguf(*files).special_texts if reserved is None else reserved
    return UpstreamEngine(address, child, UpstreamSettings(slots=4, reserved=special, calls_tools=False)), child


class LlamaContract(EngineContract):
    """The suite for models whose chat template knows no tools, as Peek's and SmolVLM's."""

    async def test_a_required_call_is_the_whole_answer_and_keeps_to_its_schema(self, engine: ChatEngine) -> None:
        with pytest.raises(Unsupported) as caught:
            await events_of(engine, calling("go"))
        assert caught.value.param == "tools"

    test_a_named_tool_is_the_one_that_is_called = None
    test_a_free_choice_is_text_or_calls_that_keep_to_their_schemas = None
    test_parameters_that_are_no_schema_are_refused_with_their_place = None

    async def test_calls_and_their_results_are_part_of_a_history(self, engine: ChatEngine) -> None:
        history = (Message("user", (Text("go"),)), Message("assistant", (ToolCall("call_1", "click", "{}"),)))
        with pytest.raises(Unsupported) as caught:
            await events_of(engine, GenerateRequest((*history, Message("tool", (Text("done"),), "call_1"))))
        assert caught.value.param == "messages"


class TestPeekOnLlama(LlamaContract):
    @pytest.fixture
    async def engine(self, peek: tuple[Path, Path]) -> AsyncIterator[UpstreamEngine]:
        engine, _ = made(peek)
        await engine.start()
        yield engine
        await engine.close()


class TestTinySmolVLMOnLlama(LlamaContract):
    @pytest.fixture
    async def engine(self, tiny: tuple[Path, Path]) -> AsyncIterator[UpstreamEngine]:
        engine, _ = made(tiny)
        await engine.start()
        yield engine
        await engine.close()


async def test_a_killed_child_costs_its_request_only_and_readiness_tells_the_truth(peek: tuple[Path, Path]) -> None:
    engine, child = made(peek)
    await engine.start()
    try:
        first = child.process_id
        assert first is not None
        async with aclosing(engine.generate(ask("go on", sampling=LONG, schema=ANY_LIST))) as stream:
            await anext(stream)
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EngineFailed):
                await _to_its_end(stream)
        await _until(engine, "loading")
        assert await events_of(engine, ask("anyone?"))
        assert child.process_id != first
        assert await text_of(engine, ask("Describe the screen.", solid((200, 10, 10), 256, 256)))
    finally:
        await engine.close()
    assert engine.status().state == "dead"


async def _to_its_end(stream: AsyncIterator[Event]) -> None:
    async for _ in stream:
        pass


async def _until(engine: UpstreamEngine, state: str) -> None:
    async with asyncio.timeout(30):
        while engine.status().state != state:
            await asyncio.sleep(0.005)


async def test_what_the_model_reserves_is_refused_as_text(peek: tuple[Path, Path]) -> None:
    engine, _ = made(peek)
    await engine.start()
    try:
        with pytest.raises(InvalidRequest, match="special token"):
            await events_of(engine, ask("What is <image> here?"))
    finally:
        await engine.close()


async def test_the_child_ends_with_the_engine(peek: tuple[Path, Path]) -> None:
    engine, child = made(peek)
    await engine.start()
    running = psutil.Process(child.process_id)
    await engine.close()
    assert not running.is_running()


@pytest.mark.parametrize("cut", [100, 70_000])
async def test_a_file_that_llama_cannot_load_stops_the_start_with_its_last_words(
    peek: tuple[Path, Path], tmp_path: Path, cut: int
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(peek[0].read_bytes()[:cut])
    engine, _ = made((broken, peek[1]), reserved=frozenset())
    with pytest.raises(StartError, match=r"ended with .* last words"):
        await engine.start()
    await engine.close()
