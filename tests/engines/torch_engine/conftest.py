"""Tiny checkpoints, their reference answers, and engines that are closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import torch

from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.models.card import find_card
from tests.engines.torch_engine.phi3_reference import Phi3Reference
from tests.engines.torch_engine.reference import MllamaReference, QwenReference, SmolVLMReference
from tests.tiny_models import write_mllama, write_qwen, write_smolvlm
from tests.tiny_phi3 import write_phi3

StartEngine = Callable[..., Awaitable[TorchEngine]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smolvlm(tmp_path_factory.mktemp("models") / "smolvlm")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="session")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phi3(tmp_path_factory.mktemp("models") / "phi3")


@pytest.fixture(scope="session")
def phi3_reference(phi3: Path) -> Phi3Reference:
    return Phi3Reference(phi3)


@pytest.fixture(scope="session")
def smolvlm_reference(smolvlm: Path) -> SmolVLMReference:
    return SmolVLMReference(smolvlm)


@pytest.fixture(scope="session")
def qwen_reference(qwen: Path) -> QwenReference:
    return QwenReference(qwen)


@pytest.fixture(scope="session")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mllama(tmp_path_factory.mktemp("models") / "mllama")


@pytest.fixture(scope="session")
def mllama_reference(mllama: Path) -> MllamaReference:
    return MllamaReference(mllama)


@pytest.fixture
async def start() -> AsyncIterator[StartEngine]:
    """`await start(folder, max_num_seqs=2)` is a running engine, closed after the test."""
    engines: list[TorchEngine] = []

    async def start(folder: Path, **settings: object) -> TorchEngine:
        chosen = TorchSettings(**{"device": "cpu", "max_num_seqs": 3, "threads": 1} | settings)  # type: ignore[arg-type]
        engine = TorchEngine(folder, find_card(str(folder), folder), chosen)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.close()
