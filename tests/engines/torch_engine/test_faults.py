"""What breaks concerns the requests that it broke, and nobody else; who leaves frees a slot; who waits is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from onsight.core.errors import EngineFailed, StartError, Unavailable
from onsight.core.messages import ImageOptions
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.families.decoder import Decoder, KeyValues
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.families.smolvlm import SmolVLM
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.contract import idle
from tests.engines.fidelity import WatchedEngine
from tests.engines.torch_engine.asking import Answer, Panic, answer, asking, check, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.reference import SmolVLMReference
from tests.tiny_models import draw

pytestmark = pytest.mark.model

POISON, UNREADABLE = draw((7, 7, 7)), draw((8, 8, 8))
POISON_TEXT = "~"
RED, BLUE = draw((200, 0, 0)), draw((0, 0, 220))


class Breaking(SmolVLM):
    """A SmolVLM that breaks on one picture when preparing, on one when encoding, and when decoding after a `~`."""

    error: ClassVar[type[BaseException]]

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        super().__init__(checkpoint, vocabulary)
        self.decoder = BreakingDecoder(self.decoder, vocabulary.encode([(POISON_TEXT, False)])[0], self.error)

    def prepare(self, plan: ImagePlan) -> Pixels:
        if plan.image.digest == UNREADABLE.digest:
            raise self.error("the secret path /etc/shadow")
        return super().prepare(plan)

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        if any(one.plan.image.digest == POISON.digest for one in pixels):
            raise self.error("the secret path /etc/shadow")
        return super().encode(pixels)


class BreakingDecoder(Decoder):
    """Breaks in the third decode step after a prompt with the poison token was read."""

    def __init__(self, inner: Decoder, poison: int, error: type[BaseException]) -> None:
        vars(self).update(vars(inner))
        self.error = error
        self._poison = poison
        self._left = -1

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        if token_ids.shape[1] > 1 and bool((token_ids == self._poison).any()):
            self._left = 3
        return super().embed(token_ids)

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, key_values: KeyValues
    ) -> torch.Tensor:
        if embeds.shape[1] == 1 and self._left >= 0:
            self._left -= 1
            if self._left == 0:
                raise self.error("the secret path /etc/shadow")
        return super().forward(embeds, positions, mask, key_values)


def load_breaking(name: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Family:
    return Breaking(checkpoint, vocabulary)


@pytest.fixture(
    params=[(1, RuntimeError), (2, RuntimeError), (2, Panic)],
    ids=["pictures in turn", "pictures apart", "pictures apart, panics"],
)
async def breaking(smolvlm: Path, request: pytest.FixtureRequest) -> AsyncIterator[TorchEngine]:
    threads, Breaking.error = request.param
    settings = TorchSettings(device="cpu", max_num_seqs=4, threads=threads)
    engine = WatchedEngine(smolvlm, find_card("x", smolvlm), settings, load_family=load_breaking)
    await engine.start()
    yield engine
    await engine.close()


async def test_a_failing_prefill_fails_its_request_alone(
    breaking: TorchEngine, smolvlm_reference: SmolVLMReference, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [asking(turn(picture, "What colour?")) for picture in (RED, POISON, BLUE)]
    made = await asyncio.gather(*(answer(breaking, request) for request in requests), return_exceptions=True)
    assert isinstance(made[1], EngineFailed)
    assert "secret" not in made[1].message
    assert any("secret" in str(record.exc_info) for record in caplog.records if record.levelno == logging.ERROR)
    for place in (0, 2):
        ours = made[place]
        assert isinstance(ours, Answer)
        check(ours, smolvlm_reference.generate(requests[place].messages, 12), smolvlm_reference)
    assert (breaking.status().state, breaking.status().running) == ("ready", 0)


async def test_a_failing_preparation_is_a_failed_request(breaking: TorchEngine) -> None:
    with pytest.raises(EngineFailed) as caught:
        await answer(breaking, asking(turn(UNREADABLE, "What colour?")))
    assert "secret" not in caught.value.message


async def test_a_decode_step_that_fails_once_is_made_again_and_no_answer_shows_it(
    breaking: TorchEngine, smolvlm_reference: SmolVLMReference, caplog: pytest.LogCaptureFixture
) -> None:
    long, poison = asking(turn(RED, "go on"), max_tokens=120), asking(turn(POISON_TEXT, " go on"), max_tokens=20)
    before = breaking.status().steps_total
    first = asyncio.create_task(answer(breaking, long))
    async with asyncio.timeout(20):
        while breaking.status().steps_total < before + 2:  # they must share the step that fails
            await asyncio.sleep(0)
    made = await asyncio.gather(first, answer(breaking, poison))
    assert "going on with each alone" in caplog.text
    for ours, request, tokens in zip(made, (long, poison), (120, 20), strict=True):
        check(ours, smolvlm_reference.generate(request.messages, tokens), smolvlm_reference)
    assert breaking.status().running == 0


async def test_a_decode_step_of_one_that_fails_is_a_failed_request_and_the_next_is_answered(
    breaking: TorchEngine, smolvlm_reference: SmolVLMReference
) -> None:
    with pytest.raises(EngineFailed) as caught:
        await answer(breaking, asking(turn(POISON_TEXT, " go on"), max_tokens=50))
    assert "secret" not in caught.value.message
    later = asking(turn(RED, "go on"))
    check(await answer(breaking, later), smolvlm_reference.generate(later.messages, 12), smolvlm_reference)
    assert breaking.status().running == 0


async def test_a_panic_over_a_token_fails_its_request_and_one_in_the_loop_itself_reaches_who_waits(
    smolvlm: Path, start: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panics(*given: object) -> None:
        raise Panic

    engine = await start(smolvlm)
    assert engine._loaded is not None
    with monkeypatch.context() as patched:
        patched.setattr(engine._loaded.loop, "_append", panics)
        with pytest.raises(EngineFailed):
            await answer(engine, asking(turn("hi")))
    assert (await answer(engine, asking(turn("hi")))).usage.completion_tokens
    monkeypatch.setattr(engine._loaded.loop, "_step", panics)
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match="has died"):
            await answer(engine, asking(turn("hi")))
    assert engine.status().state == "dead"


async def test_a_panic_while_it_loads_is_one_sentence(smolvlm: Path) -> None:
    def panics(name: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Family:
        raise Panic("at lib.rs")

    engine = TorchEngine(smolvlm, find_card("x", smolvlm), TorchSettings(device="cpu"), load_family=panics)
    async with asyncio.timeout(20):
        with pytest.raises(StartError, match=r"at lib\.rs"):
            await engine.start()
    await engine.close()


async def test_requests_are_counted_in_each_step_that_they_share(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_num_seqs=2)
    made = await asyncio.gather(*(answer(engine, asking(turn(f"story {n}"), max_tokens=30)) for n in range(2)))
    await idle(engine)
    status = engine.status()
    # Each token of an answer is a step of its request, the first one that which read the prompt.
    assert status.step_requests_total == sum(one.usage.completion_tokens for one in made)
    assert status.steps_total < status.step_requests_total


async def test_leaving_frees_the_slot_for_the_next_in_line(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_num_seqs=1)
    async with aclosing(engine.generate(asking(turn("a long story"), max_tokens=800))) as story:
        await anext(story)
        next_in_line = asyncio.ensure_future(answer(engine, asking(turn("short"), max_tokens=3)))
        while engine.status().waiting == 0:
            await asyncio.sleep(0.001)
        assert not next_in_line.done()
    assert (await next_in_line).usage.completion_tokens <= 3
    await idle(engine)


async def test_leaving_the_line_takes_no_slot(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_num_seqs=1)
    async with aclosing(engine.generate(asking(turn("a long story"), max_tokens=300))) as story:
        await anext(story)
        impatient = asyncio.ensure_future(answer(engine, asking(turn(RED, "never mind"))))
        while engine.status().waiting == 0:
            await asyncio.sleep(0.001)
        impatient.cancel()
        while engine.status().waiting:
            await asyncio.sleep(0.001)
        assert [event async for event in story]
    assert engine.status().image_cache_bytes == 0


async def test_a_slot_left_in_the_middle_is_clean_for_the_next(
    smolvlm: Path, smolvlm_reference: SmolVLMReference, start: StartEngine
) -> None:
    engine = await start(smolvlm, max_num_seqs=1)
    for picture in (RED, BLUE, RED):
        async with aclosing(engine.generate(asking(turn(picture, "What colour?"), max_tokens=90))) as events:
            await anext(events)
    request = asking(turn(RED, "What colour?"), max_tokens=20)
    check(await answer(engine, request), smolvlm_reference.generate(request.messages, 20), smolvlm_reference)


async def test_closing_tells_those_who_run_and_those_who_wait(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_num_seqs=1)
    readers = [asyncio.ensure_future(answer(engine, asking(turn(f"story {n}"), max_tokens=800))) for n in range(3)]
    while engine.status().waiting < 2:
        await asyncio.sleep(0.001)
    await engine.close()
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    assert engine.status().state == "dead"


async def test_options_of_a_picture_are_named_when_refused(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    picture = draw((200, 0, 0), options=ImageOptions(max_pixels=4000))
    with pytest.raises(Exception, match="max_pixels") as caught:
        await answer(engine, asking(turn(picture, "What colour?")))
    assert caught.value.param == "messages.image_url.max_pixels"  # type: ignore[attr-defined]


async def test_closing_while_loading_ends_the_start(smolvlm: Path) -> None:
    engine = TorchEngine(smolvlm, find_card("x", smolvlm), TorchSettings(device="cpu", threads=1))
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(StartError, match="closed"):
        await starting
    assert engine.status().state == "dead"
