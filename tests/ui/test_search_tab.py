"""The search tab with the bundled retriever: pages that the test draws, and questions in their own words."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
import pytest_asyncio

from onsight.core.messages import Image, Text
from onsight.engines.torch_engine import TorchEmbedEngine, TorchSettings
from tests.media.papers import BLUE, RED, paper, with_bad_pages
from tests.ui.conftest import LEAF, LEAF_CARD, Office, last
from training.evaluate_leaf import FIRST_SEED, STYLE, queries_about
from training.pages import FAMILY, draw_page

pytest.importorskip("gradio")

from onsight.tasks.admission import QueueLimits
from onsight.ui.desk import CALLER
from onsight.ui.search_tab import SearchTab

Furnish = Callable[..., Office]

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PAGES = [draw_page(FIRST_SEED + number * FAMILY, STYLE) for number in range(4)]
QUESTION = next(query for query in queries_about(PAGES) if query.page == 2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def leaf() -> AsyncIterator[TorchEmbedEngine]:
    engine = TorchEmbedEngine(LEAF, LEAF_CARD, TorchSettings(device="cpu", threads=1))
    await engine.start()
    yield engine
    await engine.close()


class Watched:
    """Leaf, which notes what it is shown."""

    def __init__(self, engine: TorchEmbedEngine) -> None:
        self._engine = engine
        self.shown: list[Text | Image] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def embed(self, one: Text | Image, caller: str = "") -> object:
        self.shown.append(one)
        await self.gate.wait()
        return await self._engine.embed(one, caller)

    @property
    def pages(self) -> int:
        return sum(isinstance(one, Image) for one in self.shown)


@pytest.fixture
def watched(leaf: TorchEmbedEngine) -> Watched:
    return Watched(leaf)


def upload_pages(office: Office) -> list[str]:
    uploads = []
    for number, page in enumerate(PAGES):
        file = io.BytesIO()
        page.image.save(file, "PNG")
        uploads.append(office.upload(f"page {number}.png", file.getvalue()))
    return uploads


def rows(table: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", table)]


async def test_the_page_that_answers_stands_first_and_all_have_their_scores(
    furnish: Furnish, watched: Watched, leaf: TorchEmbedEngine
) -> None:
    office = furnish(finds=watched)
    told, best, table, problem = await last(SearchTab(office.desk).find(upload_pages(office), QUESTION.text))
    assert problem == ""
    assert "4 pages" in told
    found = rows(table)
    assert [row[0] for row in found] == ["1", "2", "3", "4"]
    assert found[0][1] == "page 2.png"
    assert best.count("<img ") == 4
    assert "1. page 2.png · score " in best
    page = PAGES[2].image
    vectors = [await leaf.embed(Text(QUESTION.text)), await leaf.embed(Image.of(page.tobytes(), *page.size))]
    ((score,),) = await leaf.score(vectors[:1], vectors[1:])
    assert float(found[0][2]) == pytest.approx(score, abs=0.006)
    assert {record.task for record in office.records} == {"embed", "score"}
    assert office.admission.taken == 0


async def test_a_second_question_reads_no_page_again(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched)
    tab, uploads = SearchTab(office.desk), upload_pages(office)
    await last(tab.find(uploads[:3], QUESTION.text))
    assert watched.pages == 3
    _, _, table, _ = await last(tab.find(uploads, QUESTION.text))
    assert watched.pages == 4
    assert len(rows(table)) == 4


async def test_each_page_of_a_pdf_is_found_by_its_number(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched)
    uploads = [*upload_pages(office), office.upload("paper.pdf", paper((RED, BLUE)))]
    _, best, table, _ = await last(SearchTab(office.desk).find(uploads, QUESTION.text))
    named = {row[1] for row in rows(table)}
    assert {"paper.pdf, page 1", "paper.pdf, page 2"} <= named
    assert best.count("<img ") == 5


@pytest.mark.parametrize("good", [0, 2])
async def test_a_file_that_cannot_be_read_says_why_and_the_others_are_ranked(
    furnish: Furnish, watched: Watched, good: int
) -> None:
    office = furnish(finds=watched)
    uploads = [*upload_pages(office)[:good], office.upload("bad.png", b"no picture"), "/etc/passwd"]
    _, _, table, problem = await last(SearchTab(office.desk).find(uploads, QUESTION.text))
    found = rows(table)
    assert problem == ""
    assert [row[1] for row in found[good:]] == ["passwd", "bad.png"]
    assert "no longer on the server" in found[good][2]
    assert "The picture cannot be used" in found[good + 1][2]
    assert len(found) == good + 2


async def test_no_pages_and_no_question_are_told(furnish: Furnish, watched: Watched) -> None:
    tab = SearchTab(furnish("ru", finds=watched).desk)
    assert "Страниц нет" in (await last(tab.find([], "what")))[-1]
    assert "Вопрос пуст" in (await last(tab.find(["a.png"], " ")))[-1]
    assert watched.shown == []


async def test_a_full_queue_is_told(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched, places=1)
    uploads = upload_pages(office)
    with office.admission.place():
        assert "The server is busy" in (await last(SearchTab(office.desk).find(uploads, "what")))[-1]


async def test_all_of_a_search_is_asked_by_the_page(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched)
    await last(SearchTab(office.desk).find(upload_pages(office), QUESTION.text))
    assert {record.caller for record in office.records} == {CALLER}


async def test_pages_that_are_found_are_opened_within_the_bound_on_pixels(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched, limits=QueueLimits(pixels=10**6))
    tab, uploads = SearchTab(office.desk), upload_pages(office)
    await last(tab.find(uploads, QUESTION.text))
    with office.admission.pixels() as hold:
        await hold(10**6)
        # The vectors are known; only to be shown would the pages have to be opened.
        _, best, table, problem = await last(tab.find(uploads, QUESTION.text))
    assert (best, len(rows(table))) == ("", 4)
    assert "The server is busy" in problem
    assert office.admission.pixels_held == 0


async def test_a_page_that_opens_too_slowly_ends_in_time(
    furnish: Furnish, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = furnish(finds=watched)
    tab, uploads = SearchTab(office.desk), upload_pages(office)
    await last(tab.find(uploads, QUESTION.text))

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(office.desk.place.door, "open_pages", never)
    monkeypatch.setattr(office.admission, "_limits", QueueLimits(timeout_s=2))
    async with asyncio.timeout(20):
        _, best, table, problem = await last(tab.find(uploads, QUESTION.text))
    assert (best, len(rows(table))) == ("", 4)
    assert problem
    assert office.admission.taken == 0


async def test_closing_a_search_frees_its_place(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched)
    uploads = upload_pages(office)
    watched.gate.clear()
    async with aclosing(SearchTab(office.desk).find(uploads, QUESTION.text)) as shown:
        bar, *_ = await anext(shown)
        assert 'max="4" value="0"' in bar
        reading = asyncio.create_task(anext(shown))
        while not watched.pages:
            await asyncio.sleep(0.005)
        assert office.admission.taken == 1
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert office.admission.taken == 0


async def test_bad_pages_of_a_pdf_are_told_of_each_time(furnish: Furnish, watched: Watched) -> None:
    office = furnish(finds=watched)
    tab, uploads = SearchTab(office.desk), [office.upload("book.pdf", with_bad_pages())]
    for _ in range(2):
        _, best, table, problem = await last(tab.find(uploads, QUESTION.text))
        assert (problem, best.count("<img "), len(rows(table)), table.count('class="failed"')) == ("", 2, 4, 2)
