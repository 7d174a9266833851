"""The upstream engine keeps the contract of all engines before a server of OpenAI's API, here Onsight's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from onsight.engines.fake_engine import FakeScript
from onsight.engines.upstream_engine import Address, UpstreamEngine, UpstreamSettings, Watch
from tests.api.conftest import Bench, build  # noqa: F401 (a fixture)
from tests.engines.contract import EngineContract


class TestUpstreamEngine(EngineContract):
    @pytest.fixture
    async def engine(self, build: Callable[..., Bench]) -> AsyncIterator[UpstreamEngine]:  # noqa: F811
        async with build(FakeScript(step_s=0.001)).served() as url:
            engine = UpstreamEngine(Address(url), Watch(url), UpstreamSettings(context_tokens=4096))
            await engine.start()
            yield engine
            await engine.close()
