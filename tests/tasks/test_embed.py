"""The embed task: order, one bad page of many, memory that does not grow, leaving, and what each request cost."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from onsight.core.embedding import Embedding, ImageSpan, VectorSpace
from onsight.core.engine import EngineStatus
from onsight.core.errors import (
    DeadlineMissed,
    EngineFailed,
    InvalidMedia,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UnknownModel,
    Unsupported,
)
from onsight.core.messages import Image, ImageRef, Text
from onsight.core.pages import Pages
from onsight.engines.fake_engine import FakeEngine
from onsight.media.door import MediaDoor, MediaLimits
from onsight.models.card import ModelCard
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.embed import Embed, EmbedCall, Embedded, KeptRef, Refused, ScoreCall
from onsight.tasks.record import Record
from onsight.tasks.roster import Loaded, LoadedEmbedder, Roster
from tests.media.papers import paper, with_bad_pages
from tests.media.pictures import plain

CARD = ModelCard("pages", "Pages", "none", "Apache-2.0", "Vectors by a rule.", ("embed",))
CHAT_CARD = ModelCard("fake", "Fake", "none", "Apache-2.0", "Texts by a rule.", ("chat",))


class Counting:
    """An embedding engine without a model: a text's vectors are its letters' codes, a page's its width."""

    context_tokens = 100
    space = VectorSpace(1, "float32", 7, 2)

    def __init__(self) -> None:
        self.live = self.most = self.begun = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = False
        self.fails_at: dict[int | None, Exception] = {}

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def status(self) -> EngineStatus:
        return EngineStatus("ready", "none")

    def n_patches(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    async def embed(self, one: Text | Image, caller: str = "") -> Embedding:
        self.begun += 1
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            if isinstance(one, Image) and one.page in self.fails_at:
                raise self.fails_at[one.page]
            await self.gate.wait()
            if self.gone:
                raise Unavailable("gone")
            if isinstance(one, Image):
                return Embedding(struct.pack("2f", one.width, one.height), 2, 1, ImageSpan(1, 1, 1))
            return Embedding(struct.pack(f"{len(one.text)}f", *map(ord, one.text)), len(one.text), 1)
        finally:
            self.live -= 1

    async def score(self, queries: Sequence[Embedding], pages: Sequence[Embedding]) -> list[list[float]]:
        await self.gate.wait()
        return [[query.vectors()[0][0] + page.vectors()[0][0] for page in pages] for query in queries]


class HungIndex:
    """An index that never answers."""

    async def fetch(self, ids: Sequence[object]) -> list[object]:
        return await asyncio.get_running_loop().create_future()


class Bench:
    def __init__(
        self,
        places: int = 4,
        max_inputs: int = 100,
        queue: QueueLimits = QueueLimits(),  # noqa: B008 (frozen)
        media: MediaLimits | None = None,
    ) -> None:
        self.engine = Counting()
        self.records: list[Record] = []
        self.admission = Admission(places, queue)
        chat = FakeEngine()
        self.roster = Roster(
            [Loaded(("fake",), CHAT_CARD, chat, 0)], [LoadedEmbedder(("pages", "other"), CARD, self.engine, 0)]
        )
        index: Any = HungIndex()
        self.task = Embed(self.roster, MediaDoor(media), self.admission, [self.records.append], max_inputs, index)

    async def items(self, *inputs: Text | ImageRef, **fields: object) -> list[Embedded | Refused]:
        async with aclosing(self.task.stream(EmbedCall(inputs, **fields))) as stream:  # type: ignore[arg-type]
            return [item async for item in stream]


def picture(width: int = 20) -> ImageRef:
    return ImageRef(plain(size=(width, 10)), param="here")


async def test_vectors_come_in_the_order_of_the_inputs() -> None:
    bench = Bench()
    items = await bench.items(Text("ab"), picture(30), Text("c"))
    assert [item.embedding.vectors()[0][0] for item in items if isinstance(item, Embedded)] == [97.0, 30.0, 99.0]
    assert [item.index for item in items] == [0, 1, 2]
    (record,) = bench.records
    assert (record.task, record.model, record.reason) == ("embed", "pages", "stop")
    assert (record.prompt_tokens, record.image_tokens, record.images) == (5, 1, 1)
    assert bench.admission.taken == 0


async def test_a_bad_page_of_many_is_refused_in_its_place() -> None:
    bench = Bench()
    items = await bench.items(picture(), ImageRef(b"nothing", param="there"), picture(40))
    assert [type(item) for item in items] == [Embedded, Refused, Embedded]
    assert isinstance(items[1], Refused)
    assert items[1].error.param == "there"
    with pytest.raises(InvalidMedia):
        await bench.items(ImageRef(b"nothing"))
    assert [record.reason for record in bench.records] == ["stop", "invalid_image"]


BOOKLET = ImageRef(with_bad_pages(), param="there", pages=Pages())


def told(items: list[Embedded | Refused]) -> list[tuple[type, int, int | None]]:
    return [(type(item), item.index, item.page) for item in items]


async def test_a_bad_page_of_a_pdf_is_refused_in_its_place() -> None:
    bench = Bench()
    bench.engine.fails_at = {4: EngineFailed("broke")}
    pages = [(Embedded, 0, 1), (Refused, 0, 2), (Refused, 0, 3), (Refused, 0, 4)]
    assert told(await bench.items(BOOKLET)) == pages
    items = await bench.items(BOOKLET, picture())
    assert told(items) == [*pages, (Embedded, 1, None)]
    assert [item.error.param for item in items if isinstance(item, Refused)][:2] == ["there", "there"]
    assert (bench.records[1].images, bench.records[1].reason) == (2, "stop")
    with pytest.raises(InvalidMedia, match="page 2 of the PDF is"):
        await bench.items(ImageRef(with_bad_pages(), pages=Pages(((2, 3),))))


async def test_when_the_request_fails_on_one_page_no_other_page_goes_on() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    bench.engine.fails_at = {3: Unavailable("gone")}
    with pytest.raises(Unavailable):
        await bench.items(ImageRef(paper(), pages=Pages()))
    assert (bench.engine.begun, bench.engine.live, bench.admission.pixels_held) == (3, 0, 0)


async def test_large_files_of_one_request_wait_for_each_other_and_do_not_refuse_each_other() -> None:
    sheet = 180 * 360
    bench = Bench(queue=QueueLimits(pixels=7 * sheet), media=MediaLimits(max_request_pixels=6 * sheet, max_images=40))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, bench.admission.pixels_held)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    items = await bench.items(*[ImageRef(paper(), pages=Pages())] * 8)
    watching.cancel()
    assert told(items) == [(Embedded, index, page) for index in range(8) for page in (1, 2, 3)]
    assert (most, bench.admission.pixels_held) == (6 * sheet, 0)


async def test_no_more_than_a_few_pages_are_held_however_slow_the_reader_is() -> None:
    bench = Bench()
    async with aclosing(
        bench.task.stream(EmbedCall(tuple(picture(20 + n) for n in range(60)), streamed=True))
    ) as items:
        seen = 0
        async for _ in items:
            seen += 1
            await asyncio.sleep(0.003)
            assert bench.engine.begun <= seen + 8
    assert seen == 60


async def test_leaving_stops_what_is_on_its_way_and_frees_the_place() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    reading = asyncio.create_task(bench.items(Text("a"), picture(), Text("b")))
    async with asyncio.timeout(10):
        while bench.engine.live < 3:
            await asyncio.sleep(0.002)
    assert bench.admission.taken == 1
    reading.cancel()
    await asyncio.wait([reading])
    assert (bench.engine.live, bench.admission.taken) == (0, 0)
    assert bench.records[0].reason == "cancelled"


async def test_an_engine_that_is_gone_fails_the_whole_request() -> None:
    bench = Bench()
    bench.engine.gone = True
    with pytest.raises(Unavailable):
        await bench.items(Text("a"), Text("b"))
    assert bench.records[0].reason == "unavailable"


async def test_what_cannot_be_asked_is_refused_before_any_work() -> None:
    bench = Bench(places=0, max_inputs=40)
    for inputs, fields, said in (
        ((), {}, "empty"),
        ((Text("a"),) * 41, {}, "the limit is 40"),
        ((picture(),) * 33, {}, "the limit is 32"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            await bench.items(*inputs, **fields)
    with pytest.raises(Overloaded):
        await bench.items(Text("a"))
    with pytest.raises(Overloaded):
        await bench.items(*[picture()] * 33, streamed=True)
    with pytest.raises(UnknownModel):
        await bench.items(Text("a"), model="nobody")
    with pytest.raises(Unsupported, match="makes no vectors; name 'pages' or 'other'"):
        await bench.items(Text("a"), model="fake")
    assert bench.engine.begun == 0


async def test_scores_are_for_one_query_or_for_pairs_and_take_vectors() -> None:
    bench = Bench()
    sent = Embedding(struct.pack("f", 5.0), 1, 1)
    one = await bench.task.score(ScoreCall((Text("a"),), (picture(30), sent, picture(40))))
    assert (one.values, one.tokens, one.image_tokens) == ([127.0, 102.0, 137.0], 5, 2)
    two = await bench.task.score(ScoreCall((Text("a"), sent), (picture(30), sent), task="rerank", pairs=True))
    assert two.values == [127.0, 10.0]
    assert [(record.task, record.reason) for record in bench.records] == [("score", "stop"), ("rerank", "stop")]
    with pytest.raises(InvalidMedia):
        await bench.task.score(ScoreCall((Text("a"),), (picture(30), ImageRef(b"nothing"))))


async def test_pages_of_the_index_count_as_pictures_do() -> None:
    bench = Bench(places=0)
    named = tuple(KeptRef(number) for number in range(32))
    for pages in ((*named, KeptRef(32)), (*named, picture())):
        with pytest.raises(InvalidRequest, match=r"33 pages or more; the limit is 32 \(media.max_images\)"):
            await bench.task.score(ScoreCall((Text("a"),), pages))
    with pytest.raises(Overloaded):
        await bench.task.score(ScoreCall((Text("a"),), named))


async def test_an_index_or_a_comparison_that_hangs_ends_with_the_requests_time() -> None:
    bench = Bench(queue=QueueLimits(timeout_s=0.05))
    bench.engine.gate.clear()
    sent = Embedding(struct.pack("f", 5.0), 1, 1)
    for pages in ((KeptRef(1),), (sent,)):
        with pytest.raises(DeadlineMissed):
            async with asyncio.timeout(10):
                await bench.task.score(ScoreCall((sent,), pages))
        assert bench.admission.taken == 0
    assert [record.reason for record in bench.records] == ["deadline_exceeded"] * 2


def test_each_kind_of_model_is_found_by_what_is_asked_of_it() -> None:
    roster = Bench().roster
    assert roster.find(None).name == "fake"
    assert roster.find_embedder(None).name == roster.find_embedder("other").name == "pages"
    assert roster.find_any("other").name == "pages"
    with pytest.raises(Unsupported, match=r"makes vectors .*; name 'fake'"):
        roster.find("other")
    with pytest.raises(UnknownModel, match="loaded are 'fake', 'pages', 'other'"):
        roster.find("nobody")
    with pytest.raises(Unsupported, match="no loaded model makes vectors"):
        Roster([Loaded(("fake",), CHAT_CARD, FakeEngine(), 0)]).find_embedder(None)
