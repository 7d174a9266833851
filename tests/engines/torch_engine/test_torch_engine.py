"""The torch engine keeps the contract of all engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from onsight.engines.torch_engine import TorchEngine
from tests.engines.contract import EngineContract
from tests.engines.torch_engine.conftest import StartEngine

pytestmark = pytest.mark.model


class TestTorchEngineWithSmolVLM(EngineContract):
    @pytest.fixture
    async def engine(self, smolvlm: Path, start: StartEngine) -> TorchEngine:
        return await start(smolvlm)


class TestTorchEngineWithMllama(EngineContract):
    @pytest.fixture
    async def engine(self, mllama: Path, start: StartEngine) -> TorchEngine:
        return await start(mllama)


class TestTorchEngineWithPhi3Vision(EngineContract):
    @pytest.fixture
    async def engine(self, phi3: Path, start: StartEngine) -> TorchEngine:
        return await start(phi3)


class TestTorchEngineWithQwen(EngineContract):
    @pytest.fixture
    async def engine(self, qwen: Path, start: StartEngine) -> TorchEngine:
        return await start(qwen)
