"""The upstream engine keeps the contract of all engines before servers of OpenAI's API: Onsight's own, and a scripted
one that speaks as vLLM does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from onsight.engines.fake_engine import FakeScript
from onsight.engines.upstream_engine import Address, UpstreamEngine, UpstreamSettings, Watch
from tests.api.conftest import Bench, build  # noqa: F401 (a fixture)
from tests.engines.contract import EngineContract
from tests.engines.upstream_engine.scripted import scripted
from tests.engines.upstream_engine.vllm_script import playing_vllm


class TestUpstreamEngine(EngineContract):
    @pytest.fixture
    async def engine(self, build: Callable[..., Bench]) -> AsyncIterator[UpstreamEngine]:  # noqa: F811
        async with build(FakeScript(step_s=0.001)).served() as url:
            engine = UpstreamEngine(Address(url), Watch(url), UpstreamSettings(context_tokens=4096))
            await engine.start()
            yield engine
            await engine.close()


class TestUpstreamEngineBeforeVllm(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[UpstreamEngine]:
        async with scripted("vllm") as server:
            server.usual = playing_vllm(server)
            engine = UpstreamEngine(Address(server.url), Watch(server.url))
            await engine.start()
            yield engine
            await engine.close()
