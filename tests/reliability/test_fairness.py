"""One caller's hundred requests do not make another's one wait behind them, at any place where requests wait."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from onsight.api.keys import KeyBook, new_key, write_keys
from onsight.config import Settings
from onsight.core.errors import Overloaded
from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Draft, ImageRef, Message, Text
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.embed_queue import Asked, EmbedQueue
from onsight.engines.torch_engine.prefix import SlotBook
from onsight.engines.torch_engine.prompt import Prompt, Span
from onsight.engines.torch_engine.scheduler import Scheduler
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.media.door import MediaDoor, MediaLimits
from onsight.models.card import find_card
from onsight.models.hub import BUNDLED
from onsight.serve import _queue_limits
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat, ChatCall, collect
from onsight.tasks.record import Record
from onsight.tasks.roster import Loaded, Roster
from tests.api.conftest import CARD, Bench, until
from tests.media.pictures import plain
from tests.tiny_models import write_smolvlm

Build = Callable[..., Bench]


async def test_the_requests_of_callers_are_worked_on_in_turn() -> None:
    engine, ended = FakeEngine(FakeScript(step_s=0.01)), list[Record]()  # slow enough to be watched
    await engine.start()
    admission = Admission(64, QueueLimits(at_work=2))
    chat = Chat(Roster([Loaded(("fake",), CARD, engine, 0)]), MediaDoor(), admission, (ended.append,))

    def ask(caller: str) -> asyncio.Task[object]:
        call = ChatCall((Draft("user", (Text("hi"),)),), sampling=Sampling(max_tokens=8), caller=caller)
        return asyncio.create_task(collect(chat.stream(call)))

    many = [ask("many") for _ in range(40)]
    await until(lambda: admission.waiting == 38)
    await asyncio.gather(ask("one"), *many)
    assert [record.caller for record in ended].index("one") <= 4
    assert (admission.taken, admission.waiting) == (0, 0)


async def test_each_answer_of_a_request_counts_as_one_that_is_worked_on() -> None:
    engine = FakeEngine(FakeScript(step_s=0.02))
    await engine.start()
    admission = Admission(64, QueueLimits(at_work=3))
    chat = Chat(Roster([Loaded(("fake",), CARD, engine, 0)]), MediaDoor(), admission)

    def ask(n: int) -> asyncio.Task[object]:
        call = ChatCall((Draft("user", (Text("hi"),)),), sampling=Sampling(max_tokens=8), caller="one", n=n)
        return asyncio.create_task(collect(chat.stream(call), n))

    asked = [ask(2), ask(2), ask(1)]
    await until(lambda: engine.status().running == 2)
    assert admission.waiting == 2, "two more answers do not fit, and who comes later does not pass"
    await asyncio.gather(*asked)
    assert (admission.taken, admission.waiting) == (0, 0)


async def test_the_pictures_of_callers_are_opened_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, door = FakeEngine(), MediaDoor(MediaLimits(decode_workers=1))
    await engine.start()
    chat = Chat(Roster([Loaded(("fake",), CARD, engine, 0)]), door, Admission(64))
    began, goes_on, look = list[str | None](), threading.Event(), door._look

    def slow(ref: ImageRef, data: bytes) -> object:
        began.append(ref.param)
        assert goes_on.wait(20)
        return look(ref, data)

    monkeypatch.setattr(door, "_look", slow)

    def ask(caller: str, pictures: int) -> asyncio.Task[object]:
        parts = (ImageRef(plain(), param=caller),) * pictures
        call = ChatCall((Draft("user", parts),), sampling=Sampling(max_tokens=1), caller=caller)
        return asyncio.create_task(collect(chat.stream(call)))

    try:
        left, many = ask("left", 20), ask("many", 20)
        await until(lambda: began == ["left"] and door._turns.waiting == 39)
        left.cancel()
        await asyncio.wait([left])
        assert door._turns.waiting == 20, "who left waits no more, but their picture is still being looked at"
        one = ask("one", 1)
        await until(lambda: door._turns.waiting == 21)
        goes_on.set()
        await asyncio.gather(one, many)
        assert began.count("left") == 1
        assert began.index("one") <= 3
        assert door._turns._line._held == {}
    finally:
        goes_on.set()
        door.close()


def test_one_caller_leaves_places_for_the_others() -> None:
    admission = Admission(8, QueueLimits(places_of_one=6))
    with admission.place(6, "many"):
        with pytest.raises(Overloaded, match="6 of your requests run or wait, and 6 may"):
            with admission.place(1, "many"):
                pass
        with admission.place(2, "one"):
            assert admission.taken == 8
    assert (admission.taken, admission.refused_total, admission.most_places) == (0, 1, 6)


async def test_one_caller_leaves_pixels_for_the_others(tmp_path: Path) -> None:
    settings = Settings(keys_file=tmp_path / "keys.json", max_queue=8, max_queue_pixels=1000)
    admission = Admission(8, _queue_limits(settings))
    with admission.pixels("many") as first, admission.pixels("many") as second, admission.pixels("one") as other:
        await first(700)
        with pytest.raises(Overloaded, match="your requests that run and wait"):
            await second(51)
        await second(50)
        await other(250)
        with pytest.raises(Overloaded, match="the requests that run and wait"):
            await other(1)
        assert admission.pixels_held == 1000
    with admission.pixels("many") as alone:
        await alone(900)
    assert (admission.pixels_held, len(admission._pixel_holders)) == (0, 0)


def prompt(*, page: bool) -> Prompt:
    return Prompt([0] * 60, [], [Span.__new__(Span)] if page else [])


@pytest.mark.parametrize("page", [True, False])
async def test_queries_and_pages_of_callers_are_embedded_in_turn(page: bool) -> None:
    queue = EmbedQueue(page_tokens=60)
    for caller in ["many"] * 300 + ["one"]:
        queue.add(Asked(prompt(page=page), asyncio.Future(), caller))
    taken: list[str] = []
    while "one" not in taken:
        taken += [asked.caller for asked in queue.take()]
    assert taken.index("one") == 1


async def test_a_slot_of_the_engine_goes_to_who_holds_fewest() -> None:
    scheduler, vocabulary = Scheduler(SlotBook(3)), Vocabulary(BUNDLED / "peek")

    def ask(caller: str) -> Sequence:
        asked = Sequence(Prompt([1], [1]), Sampling(), 1, TextStream(vocabulary, ()), caller=caller)
        scheduler.add(asked)
        return asked

    def running() -> list[Sequence]:
        scheduler.schedule()
        return scheduler.running

    long = [ask("long") for _ in range(6)]
    assert running() == long[:3]
    short = [ask("short") for _ in range(3)]
    scheduler.retire(long[0])
    assert running() == [*long[1:3], short[0]]
    scheduler.retire(short[0])
    assert running() == [*long[1:3], short[1]], "long answers hold more slots already"
    long[1].cancelled = True
    scheduler.drop_cancelled()
    assert running() == [long[2], short[1], long[3]], "who hold alike take turns"
    for answered in list(scheduler.running):
        scheduler.retire(answered)
    assert running() == [short[2], *long[4:]]
    for answered in list(scheduler.running):
        scheduler.retire(answered)
    assert scheduler.waiting._held == {}


@pytest.mark.model
async def test_the_engine_answers_callers_in_turn(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model")
    engine = TorchEngine(folder, find_card("x", folder), TorchSettings(device="cpu", max_num_seqs=1, threads=1))
    await engine.start()
    ended: list[str] = []

    async def ask(caller: str) -> None:
        request = GenerateRequest((Message("user", (Text("hi"),)),), caller=caller)
        async for _ in engine.generate(request):
            pass
        ended.append(caller)

    try:
        many = [asyncio.create_task(ask("many")) for _ in range(10)]
        await until(lambda: engine.status().waiting + engine.status().running == 10)
        await asyncio.gather(ask("one"), *many)
    finally:
        await engine.close()
    # One is being answered, one more has its pictures prepared; the next turn is the other caller's.
    assert ended.index("one") <= 3


async def test_the_log_names_the_caller_by_the_keys_name_and_never_says_the_key(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, key = new_key("alice", ("chat",))
    write_keys(tmp_path / "keys.json", [key])
    bench = build(FakeScript(), keys=KeyBook(None, tmp_path / "keys.json"))
    bench.headers = {"authorization": f"Bearer {text}"}
    with caplog.at_level(logging.INFO):
        await bench.chat()
        await bench.chat(nothing=1)
        await bench.post("/v1/caption", {"image": "data:,"})
    assert [record.caller for record in bench.records] == ["alice"]
    assert [line.split(" caller=")[1].split()[0] for line in caplog.messages if " caller=" in line] == ["alice"] * 3
    assert text not in caplog.text


async def test_without_keys_callers_are_their_addresses(build: Build) -> None:
    bench = build()
    await bench.chat()
    assert [record.caller for record in bench.records] == ["127.0.0.1"]
