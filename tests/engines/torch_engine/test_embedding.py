"""The embedding engine: its vectors are the model's own, whoever shares a batch, leaves, breaks or waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onsight.core.embedding import Embedding, VectorSpace
from onsight.core.engine import EmbedEngine
from onsight.core.errors import ContextTooLong, EngineFailed, InvalidRequest, StartError, Unavailable
from onsight.core.messages import Image, ImageOptions, Text
from onsight.core.turns import Turns
from onsight.engines.torch_engine import TorchEmbedEngine, TorchSettings
from onsight.engines.torch_engine.embed_queue import Asked, EmbedQueue
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prepare_pool import PreparePool
from onsight.engines.torch_engine.prompt import Prompt, Span
from onsight.models.card import find_card
from tests.engines.torch_engine.asking import Panic
from tests.engines.torch_engine.embedding import ASKED, BLUE, RED, SHOWN, embed, farthest, load, vectors
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import draw, write_smolvlm

pytestmark = pytest.mark.model

MATES = 1e-5
POISON, UNREADABLE = draw((7, 7, 7), 64, 48), draw((8, 8, 8), 64, 48)


class Watched(ColQwen):
    """A ColQwen that notes its batches, breaks on one page when preparing and on another in a forward, and waits in
    every forward as long as `gate` is closed, with every page as long as `desk` is."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.batches: list[Sequence[Prompt]] = []
        self.error: type[BaseException] = RuntimeError
        self.gate, self.desk = threading.Event(), threading.Event()
        self.gate.set()
        self.desk.set()
        super().__init__(checkpoint)

    def look(self, prompt: Prompt) -> None:
        if any(span.plan.image.digest == UNREADABLE.digest for span in prompt.spans):
            raise self.error("the secret path /etc/shadow")
        if prompt.spans:
            assert self.desk.wait(20)
        super().look(prompt)

    def embed(self, prompts: Sequence[Prompt], batch_tokens: int = 16_384) -> list[Embedding]:
        gate = self.gate
        self.batches.append(prompts)
        assert gate.wait(20)
        if any(span.plan.image.digest == POISON.digest for prompt in prompts for span in prompt.spans):
            raise self.error("the secret path /etc/shadow")
        return super().embed(prompts, batch_tokens)

    def kinds(self) -> list[str]:
        """What each batch since the first forward was made of, a letter an input."""
        return ["".join("p" if prompt.spans else "q" for prompt in batch) for batch in self.batches[1:]]


class Running:
    """A started engine and the model inside."""

    def __init__(self, engine: TorchEmbedEngine, model: Watched) -> None:
        self.engine, self.model = engine, model

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """While the model is in the middle of the forward of a query, which ends with the block."""
        gate, done = self.model.gate, len(self.model.batches)
        gate.clear()
        first = asyncio.create_task(self.engine.embed(Text("hold")))
        await until(lambda: len(self.model.batches) > done and self.engine.status().running == 1)
        try:
            yield
        finally:
            gate.set()
            await asyncio.wait([first])

    def ask(self, *inputs: str | Image) -> list[asyncio.Task[Embedding]]:
        texts = [Text(one) if isinstance(one, str) else one for one in inputs]
        return [asyncio.create_task(self.engine.embed(one)) for one in texts]

    async def waiting(self, count: int) -> None:
        """Until so many prepared inputs wait for the model."""
        await until(lambda: len(self.queue) == count)

    @property
    def queue(self) -> EmbedQueue:
        assert self.engine._loaded is not None
        return self.engine._loaded.queue


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "colqwen")


@pytest.fixture(scope="module")
def model(folder: Path) -> ColQwen:
    return load(folder)


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    made: list[Watched] = []

    def load_watched(name: str, checkpoint: Checkpoint) -> ColQwen:
        made.append(Watched(checkpoint))
        return made[0]

    engine = TorchEmbedEngine(
        folder, find_card(str(folder), folder), TorchSettings(device="cpu", threads=1), load=load_watched
    )
    await engine.start()
    yield Running(engine, made[0])
    made[0].gate.set()
    await engine.close()


async def test_it_is_an_embedding_engine_that_says_what_its_vectors_are(running: Running, model: ColQwen) -> None:
    engine: EmbedEngine = running.engine
    assert engine.space == VectorSpace(128, "float32", model.image_token_id, 2)
    assert engine.n_patches(300, 200) == model.n_patches(300, 200)
    assert engine.context_tokens == 1024
    status = engine.status()
    assert (status.state, status.device, status.running, status.waiting) == ("ready", "cpu", 0, 0)
    assert status.memory is not None
    assert status.memory.weights_bytes == model.weight_bytes > 400_000


async def test_many_at_once_get_what_each_gets_alone(running: Running, model: ColQwen) -> None:
    inputs = [*ASKED, *SHOWN, "What colour is it?", draw(BLUE, 60, 90), draw(RED, 90, 60)]
    assert len(inputs) == 16
    together = await asyncio.gather(*running.ask(*inputs))
    assert len(running.model.batches) < len(inputs)
    apart = max(farthest(made, vectors(embed(model, one)[0])) for one, made in zip(inputs, together, strict=True))
    print(f"largest difference from a batch of one: {apart:.1e}")
    assert apart <= MATES
    for one, made in zip(inputs, together, strict=True):
        (alone,) = embed(model, one)
        assert made.image == alone.image
    status = running.engine.status()
    assert status.prompt_tokens_total == sum(made.rows for made in together)
    assert status.steps_total == len(running.model.batches) - 1
    assert status.step_requests_total == len(inputs)


async def test_queries_wait_for_one_batch_of_pages_at_most(running: Running) -> None:
    async with running.held():
        pages = running.ask(*(draw(RED, 300 + number, 300) for number in range(70)))
        await running.waiting(32)
        queries = running.ask(*ASKED)
        await until(lambda: len(running.queue._queries) == len(ASKED))
        assert len(running.queue._pages) == 32, "no more pages are prepared at once"
    await asyncio.gather(*queries)
    assert running.model.kinds()[1][:1] == "p"
    assert running.model.kinds()[2] == "q" * len(ASKED)
    assert not all(page.done() for page in pages)
    await asyncio.gather(*pages)
    assert sum(map(len, running.model.kinds())) == 1 + len(ASKED) + 70


def asked(tokens: int, *, page: bool) -> Asked:
    spans = [Span.__new__(Span)] if page else []
    return Asked(Prompt([0] * tokens, [], spans), asyncio.Future(loop=asyncio.new_event_loop()))


def test_pages_do_not_wait_for_ever_either_and_the_first_to_come_is_in_the_next_batch() -> None:
    queue = EmbedQueue(page_tokens=100)
    pages = [asked(tokens, page=True) for tokens in (60, 10, 49, 11, 50, 500)]
    for page in pages:
        queue.add(page)
    taken = []
    while len(queue):
        queue.add(asked(5, page=False))
        queue.add(asked(50, page=False))
        batch = queue.take()
        if batch[0].prompt.spans:
            taken.append([one.tokens for one in batch])
        else:
            assert len(batch) % 2 == 0
        if len(taken) == 4:
            break
    assert taken == [[60], [10, 11], [49, 50], [500]]


async def test_who_leaves_is_not_embedded(running: Running) -> None:
    async with running.held():
        stay, leave = running.ask("stay", "leave")
        (page,) = running.ask(SHOWN[0])
        await running.waiting(3)
        leave.cancel()
        page.cancel()
        await running.waiting(1)
    await stay
    assert running.model.kinds() == ["q", "q"]
    assert running.engine.status().waiting == 0


async def test_leaving_in_the_middle_of_a_forward_takes_nobody_along(running: Running) -> None:
    async with running.held():
        stay, leave = running.ask("stay", "leave")
        await running.waiting(2)
        # A gate of their own, which is closed before they come to it.
        running.model.gate = threading.Event()
    await until(lambda: running.engine.status().running == 2)
    leave.cancel()
    running.model.gate.set()
    assert (await stay).rows > 0
    await asyncio.wait([leave])
    assert leave.cancelled()
    assert (await running.engine.embed(Text("still here"))).rows > 0


@pytest.mark.parametrize("error", [RuntimeError, Panic])
async def test_one_that_breaks_a_forward_takes_no_neighbour_along(
    running: Running, model: ColQwen, error: type[BaseException]
) -> None:
    running.model.error = error
    async with running.held():
        good, bad, other = running.ask(SHOWN[0], POISON, draw(BLUE, 64, 48))
        await running.waiting(3)
    with pytest.raises(EngineFailed) as caught:
        await bad
    assert "shadow" not in str(caught.value)
    assert farthest(await good, vectors(embed(model, SHOWN[0])[0])) <= MATES
    assert (await other).rows > 0
    assert (await running.engine.embed(Text("still here"))).rows > 0


@pytest.mark.parametrize("error", [RuntimeError, Panic])
async def test_one_that_cannot_be_prepared_is_told_so(running: Running, error: type[BaseException]) -> None:
    running.model.error = error
    with pytest.raises(EngineFailed) as caught:
        await running.engine.embed(UNREADABLE)
    assert "shadow" not in str(caught.value)
    with pytest.raises(ContextTooLong, match="1024"):
        await running.engine.embed(Text("colour " * 3000))
    assert running.engine.status().waiting == 0


async def test_queries_are_prepared_no_further_ahead_than_there_is_room(running: Running) -> None:
    running.engine._query_room = Turns(300)
    async with running.held():
        asked = running.ask(*["a" * 100] * 10, SHOWN[0])
        # "hold" has some of the room itself.
        await running.waiting(3)
        await asyncio.sleep(0.05)
        assert (len(running.queue), running.engine.status().waiting) == (3, 11)
    assert all(made.rows for made in await asyncio.gather(*asked))


async def test_large_pages_are_prepared_no_further_ahead_than_their_bytes_allow(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = draw(RED, 60, 40)
    monkeypatch.setattr("onsight.engines.torch_engine.embedding._PAGE_BYTES", running.model.page_bytes(page))
    large = replace(page, options=ImageOptions(min_pixels=28 * 28 * 18))
    assert running.model.page_bytes(large) == 4 * running.model.page_bytes(page)
    async with running.held():
        asked = running.ask(*[large] * 20)
        await running.waiting(32 // 4)
        await asyncio.sleep(0.05)
        assert (len(running.queue), running.engine.status().waiting) == (32 // 4, 20)
    assert all(made.rows for made in await asyncio.gather(*asked))


@pytest.mark.parametrize(("asked", "given"), [(None, 16_384), (64, 64), (20_000, 20_000), (50_000, 40_000)])
async def test_an_input_is_no_longer_than_was_set_or_a_batch_is(tmp_path: Path, asked: int | None, given: int) -> None:
    folder = write_colqwen(tmp_path / "long", context=40_000)
    settings = TorchSettings(device="cpu", threads=1, max_model_len=asked)
    engine = TorchEmbedEngine(folder, find_card(str(folder), folder), settings)
    await engine.start()
    try:
        assert engine.context_tokens == given
        with pytest.raises(ContextTooLong, match=f"at most {given}"):
            await engine.embed(Text("🙂" * 15_000))
        assert (await engine.embed(Text("a" * 20))).rows <= 30
    finally:
        await engine.close()


async def test_closing_reaches_everyone_who_waits(running: Running) -> None:
    async with running.held():
        waiting = running.ask("one", SHOWN[0])
        await running.waiting(2)
        closing = asyncio.create_task(running.engine.close())
        for one in waiting:
            with pytest.raises(Unavailable):
                await one
        running.model.gate.set()
        await closing
        with pytest.raises(Unavailable):
            await running.engine.embed(Text("after"))
        with pytest.raises(Unavailable):
            running.engine.n_patches(10, 10)
        await running.engine.close()
        assert running.engine.status().state == "dead"


async def test_pages_that_are_prepared_hold_up_neither_queries_nor_scores(running: Running) -> None:
    running.model.desk.clear()
    pages = running.ask(*[draw(RED, 60, 40)] * 40)
    try:
        async with asyncio.timeout(10):
            short, long = await asyncio.gather(*running.ask("short", "the " * 520))
            ((score,),) = await running.engine.score([short], [long])
    finally:
        running.model.desk.set()
    assert score == pytest.approx(float((vectors(short) @ vectors(long).T).max(dim=1).values.sum()), abs=1e-5)
    assert not any(page.done() for page in pages)
    assert len(await asyncio.gather(*pages)) == 40


async def test_short_texts_that_wait_are_prepared_together_and_each_fails_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[int] = []
    true = PreparePool.run_all

    async def noted(self: PreparePool, work: Any, subjects: Sequence[Any]) -> list[Any]:
        handed.append(len(subjects))
        return await true(self, work, subjects)

    def read(one: Text | Image) -> Prompt:
        if one == Text("b"):
            raise RuntimeError("the secret path /etc/shadow")
        return ColQwen.read(running.model, one)

    monkeypatch.setattr(PreparePool, "run_all", noted)
    monkeypatch.setattr(running.model, "read", read)
    tasks = running.ask(*"abcdefgh")
    made = await asyncio.gather(*tasks, return_exceptions=True)
    assert handed == [8]
    assert [type(one) for one in made] == [Embedding, EngineFailed, *[Embedding] * 6]
    leaving, staying = running.ask("i", "j")
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).rows == 11


async def test_scores_are_max_sim(running: Running) -> None:
    query, page = await asyncio.gather(*running.ask("What colour?", SHOWN[0]))
    ((score,),) = await running.engine.score([query], [page])
    expected = (vectors(query) @ vectors(page).T).max(dim=1).values.sum()
    assert score == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(InvalidRequest, match="cannot be compared"):
        await running.engine.score([query], [Embedding(bytes(8), 1, 2)])


async def test_a_model_that_makes_no_vectors_is_refused(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "chat")
    engine = TorchEmbedEngine(folder, find_card(str(folder), folder), TorchSettings(device="cpu"))
    with pytest.raises(StartError, match="no vectors with family 'smolvlm'"):
        await engine.start()
    await engine.close()


async def test_files_that_make_no_sense_are_one_sentence(tmp_path: Path) -> None:
    folder = write_colqwen(tmp_path / "broken")
    card = find_card(str(folder), folder)
    (folder / "config.json").write_text('{"architectures": ["ColQwen2_5"]}')
    engine = TorchEmbedEngine(folder, card, TorchSettings(device="cpu"))
    with pytest.raises(StartError) as caught:
        await engine.start()
    assert "\n" not in str(caught.value)
    await engine.close()


async def test_a_panic_while_it_loads_is_one_sentence(folder: Path) -> None:
    def panics(name: str, checkpoint: Checkpoint) -> ColQwen:
        raise Panic("at lib.rs")

    engine = TorchEmbedEngine(folder, find_card(str(folder), folder), TorchSettings(device="cpu"), load=panics)
    with pytest.raises(StartError, match=r"cannot be loaded: Panic: at lib\.rs"):
        await engine.start()
    await engine.close()


async def test_a_forward_has_as_many_threads_as_were_asked_for(folder: Path) -> None:
    counts: list[int] = []

    class Counting(ColQwen):
        def embed(self, prompts: Sequence[Prompt], batch_tokens: int = 16_384) -> list[Embedding]:
            counts.append(torch.get_num_threads())
            return super().embed(prompts, batch_tokens)

    engine = TorchEmbedEngine(
        folder,
        find_card(str(folder), folder),
        TorchSettings(device="cpu", threads=2),
        load=lambda name, checkpoint: Counting(checkpoint),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        await engine.start()
        await engine.embed(Text("a"))
        assert counts[-1] == 2
        await engine.close()
    finally:
        torch.set_num_threads(before)


async def test_a_stuck_engine_can_be_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.engines.torch_engine.embedding._CLOSE_S", 0.1)
    async with running.held():
        (waits,) = running.ask("colour")
        await running.waiting(1)
        await asyncio.wait_for(running.engine.close(), 10)
        with pytest.raises(Unavailable):
            await waits
