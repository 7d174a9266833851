"""Memory that cannot be had fails the request that wants it; an engine that is stuck says so, and may go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Rows
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from onsight.core.errors import EngineFailed, Unavailable
from onsight.core.generation import GenerateRequest
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.smolvlm import SmolVLM
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prompt import Pixels
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.api.conftest import CARD, Bench, until
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.tiny_models import draw, write_smolvlm

pytestmark = pytest.mark.model

Build = Callable[..., Bench]
RED, HUGE = draw((200, 0, 0)), draw((9, 9, 9))


class Greedy(SmolVLM):
    """A SmolVLM that asks for 256 TB where a test says so, and waits in each forward while `gate` is closed."""

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        super().__init__(checkpoint, vocabulary)
        self.decoder = GreedyDecoder(self.decoder, vocabulary.encode([("~", False)])[0])

    def encode(self, pixels: Rows[Pixels]) -> list[torch.Tensor]:
        if any(one.plan.image.digest == HUGE.digest for one in pixels):
            torch.empty(1 << 48, dtype=torch.uint8)
        return super().encode(pixels)


class GreedyDecoder(Decoder):
    gate = threading.Event()

    def __init__(self, inner: Decoder, poison: int) -> None:
        vars(self).update(vars(inner))
        self._poison = poison

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Breaks when a prompt with `~` is read; `~` alone, in a step of many rows, breaks the step."""
        assert self.gate.wait(60)
        if bool((token_ids == self._poison).any()):
            torch.empty(1 << 48, dtype=torch.uint8)
        return super().embed(token_ids)


@asynccontextmanager
async def greedy(folder: Path, **settings: object) -> AsyncIterator[TorchEngine]:
    chosen = TorchSettings(device="cpu", threads=1, **settings)  # type: ignore[arg-type]
    engine = TorchEngine(
        folder, find_card("x", folder), chosen, load_family=lambda name, given, words: Greedy(given, words)
    )
    GreedyDecoder.gate.set()
    await engine.start()
    try:
        yield engine
    finally:
        GreedyDecoder.gate.set()
        await engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smolvlm(tmp_path_factory.mktemp("models") / "smolvlm")


@pytest.mark.parametrize("asked", [asking(turn(HUGE, "hi")), asking(turn("~ hi"))], ids=["picture", "prompt"])
async def test_memory_that_is_not_there_fails_the_one_request_that_wants_it(
    folder: Path, asked: GenerateRequest
) -> None:
    fine = asking(turn(RED, "hi"))
    async with greedy(folder) as engine:
        alone = await answer(engine, fine)
        made = await asyncio.gather(*(answer(engine, one) for one in (fine, asked, fine)), return_exceptions=True)
        error = made[1]
        assert isinstance(error, EngineFailed)
        assert (error.code, "not enough memory" in error.message) == ("out_of_memory", True)
        assert [getattr(one, "text", one) for one in (made[0], made[2])] == [alone.text] * 2
        assert (engine.status().state, engine.status().running) == ("ready", 0)


async def test_a_step_without_memory_fails_the_answer_that_wants_it_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, wants, last = (asking(turn(words), max_tokens=8) for words in ("hi a", "hi bb cc", "hi d"))
    async with greedy(folder) as engine:
        alone = [await answer(engine, one) for one in (first, wants, last)]
        assert engine._loaded is not None
        runner, size = engine._loaded.loop._runner, alone[1].usage.prompt_tokens
        whole, broken = runner.decode, list[int]()

        def decode(sequences: Rows[Sequence]) -> torch.Tensor:
            """The answer to the longer prompt wants too much in its fourth step."""
            if any(one.prompt_tokens == size and len(one.answer) == 4 for one in sequences):
                broken.append(len(sequences))
                torch.empty(1 << 48, dtype=torch.uint8)
            return whole(sequences)

        monkeypatch.setattr(runner, "decode", decode)
        made = await asyncio.gather(*(answer(engine, one) for one in (first, wants, last)), return_exceptions=True)
        assert isinstance(made[1], EngineFailed)
        assert (made[1].code, broken[-1]) == ("out_of_memory", 1)
        assert [getattr(one, "text", one) for one in (made[0], made[2])] == [alone[0].text, alone[2].text]


async def test_an_engine_that_is_stuck_is_not_ready_until_it_goes_on(folder: Path, build: Build) -> None:
    async with greedy(folder, stall_s=0.2) as engine:
        bench = build(engine=engine, card=CARD)
        await asyncio.sleep(0.3)
        assert (await bench.get("/ready")).status_code == 200, "without work nothing is stuck"
        GreedyDecoder.gate.clear()
        stuck = asyncio.create_task(answer(engine, asking(turn("hi"))))
        await until(lambda: engine.status().state == "stalled")
        ready, health = await bench.get("/ready"), await bench.get("/health")
        assert (ready.status_code, ready.json()["status"], health.status_code) == (503, "stalled", 503)
        assert "engine_ready{" in (metrics := bench.metrics.render().decode())
        assert 'onsight_engine_ready{model_name="fake"} 0.0' in metrics
        with pytest.raises(Unavailable, match="no progress"):
            await answer(engine, asking(turn("me too")))
        GreedyDecoder.gate.set()
        assert (await stuck).usage.completion_tokens
        assert (await bench.get("/ready")).status_code == 200


async def test_a_stuck_engine_can_be_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.engines.torch_engine.engine._CLOSE_S", 0.1)
    async with greedy(folder) as engine:
        GreedyDecoder.gate.clear()
        stuck = asyncio.create_task(answer(engine, asking(turn("hi"))))
        await until(lambda: len(engine._live) == 1)
        await asyncio.wait_for(engine.close(), 20)
        with pytest.raises(Unavailable):
            await stuck


async def test_more_prompt_than_there_is_room_for_waits_before_its_pictures_are_prepared(folder: Path) -> None:
    async with greedy(folder, max_queue_tokens=200) as engine:
        GreedyDecoder.gate.clear()
        long = asyncio.create_task(answer(engine, asking(turn("colour " * 400))))
        await until(lambda: len(engine._live) == 1)
        short = asyncio.create_task(answer(engine, asking(turn(RED, "hi"))))
        await until(lambda: engine.status().waiting == 1)
        assert engine._loaded is not None
        misses = engine._loaded.intake._features.misses
        GreedyDecoder.gate.set()
        assert (await long).usage.completion_tokens
        assert (await short).usage.completion_tokens
        assert misses == 0, "not looked at before there was room"
        assert engine._loaded.intake._features.misses > 0
