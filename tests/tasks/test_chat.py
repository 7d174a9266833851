"""Chat takes a place, opens the pictures, streams the choices, and gives everything back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from onsight.core.errors import (
    EngineFailed,
    InvalidMedia,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UnknownModel,
    Unsupported,
)
from onsight.core.frames import FrameRule
from onsight.core.generation import Finished, Sampling
from onsight.core.messages import Draft, ImageRef, Text, Video, VideoRef
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.media.door import MediaDoor, Opened
from onsight.models.card import ModelCard, find_card
from onsight.models.hub import locate_model
from onsight.tasks.admission import Admission
from onsight.tasks.chat import Chat, ChatCall, collect
from onsight.tasks.record import Record
from onsight.tasks.roster import Loaded, Roster
from tests.media.clips import EVERY_SECOND, clip
from tests.media.pictures import plain

CARD = ModelCard("fake", "Fake", "fake", "Apache-2.0", "no model", ("chat", "tools"))


class CountingDoor(MediaDoor):
    """A door that says how often it was asked to open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def open_pages(self, refs: Sequence[ImageRef], *rest: Any) -> tuple[Opened, ...]:
        self.asked += 1
        return await super().open_pages(refs, *rest)

    async def open_videos(self, refs: Sequence[VideoRef], rule: FrameRule, *rest: Any) -> tuple[Video, ...]:
        self.asked += 1
        return await super().open_videos(refs, rule, *rest)


@dataclass
class Bench:
    """A chat on a fake engine, and everything a test looks at."""

    script: FakeScript = field(default_factory=FakeScript)
    places: int = 4
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = FakeEngine(self.script)
        self.door = CountingDoor()
        self.admission = Admission(self.places)
        roster = Roster([Loaded(("fake", "alias"), CARD, self.engine, 0)])
        self.chat = Chat(roster, self.door, self.admission, (self.records.append,))

    def sees(self, frames: FrameRule) -> None:
        """From now on the model sees videos."""
        roster = Roster([Loaded(("fake",), replace(CARD, frames=frames), self.engine, 0)])
        self.chat = Chat(roster, self.door, self.admission, (self.records.append,))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.engine.start()
    yield made
    made.door.close()


def call(text: str = "hello", **changes: object) -> ChatCall:
    return ChatCall((Draft("user", (Text(text),)),), **changes)  # type: ignore[arg-type]


async def test_the_n_answers_of_a_seed_differ_and_repeat(bench: Bench) -> None:
    asked = call(n=3, sampling=Sampling(seed=3, temperature=1.0))
    first = [answer.text for answer in await collect(bench.chat.stream(asked), 3)]
    assert [answer.text for answer in await collect(bench.chat.stream(asked), 3)] == first
    assert len(set(first)) == 3


async def test_one_record_is_kept_per_request(bench: Bench) -> None:
    await collect(bench.chat.stream(call("one two", n=2, request_id="r1")), 2)
    (record,) = bench.records
    assert (record.request_id, record.reason, record.prompt_tokens) == ("r1", "stop", 2)
    assert record.completion_tokens > 10
    assert record.first_token_ms is not None


async def test_a_full_queue_refuses_before_any_picture_is_opened(bench: Bench) -> None:
    with bench.admission.place(4):
        with pytest.raises(Overloaded):
            await collect(bench.chat.stream(ChatCall((Draft("user", (ImageRef(b"junk"), Text("x"))),))))
    assert bench.door.asked == 0
    assert bench.records[0].reason == "queue_full"


async def test_a_full_queue_refuses_before_any_video_is_opened(bench: Bench) -> None:
    bench.sees(EVERY_SECOND)
    asked = ChatCall((Draft("user", (VideoRef("http://127.0.0.1/x.mp4", param="here"), Text("x"))),))
    with bench.admission.place(4):
        with pytest.raises(Overloaded):
            await collect(bench.chat.stream(asked))
    assert bench.door.asked == 0
    with pytest.raises(InvalidMedia):
        await collect(bench.chat.stream(asked))
    assert bench.door.asked == 1
    assert bench.admission.taken == 0


async def test_pictures_and_videos_keep_their_places(bench: Bench) -> None:
    bench.sees(EVERY_SECOND)
    parts = (ImageRef(plain()), VideoRef(clip(frames=20)), Text("and"), ImageRef(plain(size=(9, 9))))
    (made,) = await collect(bench.chat.stream(ChatCall((Draft("user", parts),))))
    assert made.text.startswith("fake engine: and [20x10] [64x48x2] [9x9]")
    assert (bench.records[0].images, bench.records[0].videos) == (2, 1)


async def test_peek_was_never_shown_a_video_and_says_so_before_it_takes_a_place(bench: Bench) -> None:
    card = find_card("peek", locate_model("peek"))
    chat = Chat(Roster([Loaded(("peek",), card, bench.engine, 0)]), bench.door, bench.admission)
    with bench.admission.place(4), pytest.raises(Unsupported, match="model 'peek' does not see videos") as caught:
        await collect(chat.stream(ChatCall((Draft("user", (VideoRef(clip(), param="here"), Text("x"))),))))
    assert caught.value.param == "here"
    assert bench.door.asked == 0


async def test_closing_the_stream_gives_the_places_back(bench: Bench) -> None:
    stream = bench.chat.stream(call(n=3))
    async with aclosing(stream):
        await anext(stream)
        assert bench.admission.taken == 3
    assert bench.admission.taken == 0
    assert bench.engine.status().running == 0
    assert bench.records[0].reason == "cancelled"


async def test_an_engine_that_breaks_ends_every_choice_and_gives_the_places_back() -> None:
    bench = Bench(FakeScript(fail_after=3))
    await bench.engine.start()
    with pytest.raises(EngineFailed):
        await collect(bench.chat.stream(call(n=2)), 2)
    assert bench.admission.taken == 0
    assert bench.engine.status().running == 0
    assert bench.records[0].reason == "engine_error"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (ChatCall(()), InvalidRequest),
        (ChatCall((Draft("system", (ImageRef(b""),)), Draft("user", (Text("x"),)))), InvalidRequest),
        (ChatCall((Draft("assistant", (Text("x"),)),)), InvalidRequest),
        (call(model="other"), UnknownModel),
    ],
)
async def test_a_wrong_call_is_refused_before_a_place_is_taken(
    bench: Bench, asked: ChatCall, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await collect(bench.chat.stream(asked))
    assert bench.admission.taken == 0


async def test_a_model_that_does_not_chat_says_what_it_offers() -> None:
    card = ModelCard("pages", "Pages", "fake", "Apache-2.0", "embeds", ("embed",))
    chat = Chat(Roster([Loaded(("pages",), card, FakeEngine(), 0)]), MediaDoor(), Admission(1))
    with pytest.raises(Unsupported, match="embed"):
        await collect(chat.stream(call()))


async def test_aliases_mean_the_same_model(bench: Bench) -> None:
    assert len(await collect(bench.chat.stream(call(model="alias")))) == 1
    assert bench.records[0].model == "fake"


async def test_a_stopping_server_refuses_new_requests_and_lets_running_ones_finish(bench: Bench) -> None:
    stream = bench.chat.stream(call())
    async with aclosing(stream):
        await anext(stream)
        bench.admission.close()
        with pytest.raises(Unavailable):
            await collect(bench.chat.stream(call()))
        rest = [choice async for choice in stream]
        assert isinstance(rest[-1].event, Finished)
    assert await bench.admission.drained(1.0)


async def test_draining_gives_up_after_its_time() -> None:
    admission = Admission(1)
    with admission.place():
        assert not await admission.drained(0.01)
    assert await asyncio.wait_for(admission.drained(1.0), 2.0)
