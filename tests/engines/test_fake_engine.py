"""The fake engine keeps the contract of all engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onsight.core.errors import EngineFailed
from onsight.core.generation import Sampling
from onsight.engines.fake_engine import FakeEngine, FakeScript
from tests.engines.contract import EngineContract, ask, events_of, solid, text_of


class TestFakeEngine(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[FakeEngine]:
        engine = FakeEngine(FakeScript(step_s=0.001))
        await engine.start()
        yield engine
        await engine.close()


async def test_it_says_that_it_is_fake_and_repeats_what_it_was_shown() -> None:
    engine = FakeEngine()
    await engine.start()
    request = ask("What is this?", solid((1, 2, 3), 20, 30), sampling=Sampling(max_tokens=64))
    answer = await text_of(engine, request)
    assert "fake engine: What is this? [20x30]" in answer


async def test_it_breaks_when_told_to() -> None:
    engine = FakeEngine(FakeScript(fail_after=2))
    await engine.start()
    with pytest.raises(EngineFailed):
        await events_of(engine, ask("one two three four"))
