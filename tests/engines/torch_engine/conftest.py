"""Tiny checkpoints, their reference answers, and engines that are closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.models.card import find_card
from tests.engines.fidelity import FAMILIES, Tiny, WatchedEngine
from tests.engines.torch_engine.phi3_reference import Phi3Reference
from tests.engines.torch_engine.reference import MllamaReference, QwenReference, SmolVLMReference

StartEngine = Callable[..., Awaitable[TorchEngine]]
GetTiny = Callable[[str], Tiny]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GetTiny:
    """`tiny("qwen")` is that family's tiny checkpoint and its reference, the same all session long."""

    @cache
    def get(name: str) -> Tiny:
        kind = FAMILIES[name]
        return Tiny(name, kind, kind.write(tmp_path_factory.mktemp("models") / name))

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tiny: GetTiny) -> Tiny:
    """Every chat family in turn."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def smolvlm(tiny: GetTiny) -> Path:
    return tiny("smolvlm").folder


@pytest.fixture(scope="session")
def qwen(tiny: GetTiny) -> Path:
    return tiny("qwen").folder


@pytest.fixture(scope="session")
def phi3(tiny: GetTiny) -> Path:
    return tiny("phi3").folder


@pytest.fixture(scope="session")
def mllama(tiny: GetTiny) -> Path:
    return tiny("mllama").folder


@pytest.fixture(scope="session")
def phi3_reference(tiny: GetTiny) -> Phi3Reference:
    reference = tiny("phi3").reference
    assert isinstance(reference, Phi3Reference)
    return reference


@pytest.fixture(scope="session")
def smolvlm_reference(tiny: GetTiny) -> SmolVLMReference:
    reference = tiny("smolvlm").reference
    assert isinstance(reference, SmolVLMReference)
    return reference


@pytest.fixture(scope="session")
def qwen_reference(tiny: GetTiny) -> QwenReference:
    reference = tiny("qwen").reference
    assert isinstance(reference, QwenReference)
    return reference


@pytest.fixture(scope="session")
def mllama_reference(tiny: GetTiny) -> MllamaReference:
    reference = tiny("mllama").reference
    assert isinstance(reference, MllamaReference)
    return reference


@pytest.fixture
async def start() -> AsyncIterator[StartEngine]:
    """`await start(folder, max_num_seqs=2)` is a running engine that keeps its logits, closed after the test."""
    engines: list[TorchEngine] = []

    async def start(folder: Path, **settings: object) -> TorchEngine:
        chosen = TorchSettings(**{"device": "cpu", "max_num_seqs": 3, "threads": 1} | settings)  # type: ignore[arg-type]
        engine = WatchedEngine(folder, find_card(str(folder), folder), chosen)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.close()
