"""The page's visitors wait where the API's callers do: in Gradio, which it is made of, nothing waits or piles up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
import pytest_asyncio
from starlette.routing import Mount

from onsight.core.generation import Event, GenerateRequest
from onsight.engines.fake_engine import FakeEngine
from onsight.media.door import MediaDoor
from onsight.tasks.admission import Admission, QueueLimits
from onsight.ui.open_events import OpenEvents
from onsight.ui.page import Page
from onsight.ui.words import load_words
from tests.api.conftest import until
from tests.ui.conftest import furnished
from tests.ui.test_page import opened

pytest.importorskip("gradio")
pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES, OF_ONE, TABS = 45, 42, 50
"""More than Gradio by itself runs at once, and fewer tabs than it would remember."""


class Held(FakeEngine):
    """Begins no answer until `goes_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        await self.goes_on.wait()
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event


@dataclass
class Hall:
    """An open page with a small queue, and what is behind it."""

    client: httpx.AsyncClient
    page: Page
    admission: Admission
    engine: Held
    asks: int
    """The number of the chat tab's event."""

    async def post(self, path: str, visitor: str = "a", language: str = "en", **fields: object) -> httpx.Response:
        transport = httpx.ASGITransport(self.client._transport.app, client=(visitor, 1))  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as client:
            return await client.post(f"/ui/{language}/gradio_api/{path}", json=fields)

    async def ask(self, tab: str, visitor: str = "a", language: str = "en", **fields: object) -> httpx.Response:
        given = [{"text": "hello", "files": []}, None, 8, 0.5]
        body = {"data": given, "fn_index": self.asks, "session_hash": tab, **fields}
        return await self.post("queue/join", visitor, language, **body)

    async def read(self, tab: str, language: str = "en") -> str:
        url = f"/ui/{language}/gradio_api/queue/data"
        return (await self.client.get(url, params={"session_hash": tab})).text

    def tabs(self) -> set[str]:
        """Those of which Gradio keeps anything."""
        queues = [mounted.get_blocks()._queue for mounted in self.page._mounted.values()]
        return {tab for one in queues for tab in (*one.pending_messages_per_session, *one.pending_event_ids_session)}

    def running(self) -> int:
        return sum(len(one.get_blocks()._queue.event_ids_to_events) for one in self.page._mounted.values())

    def sessions(self) -> int:
        return max(len(mounted.state_holder.session_data) for mounted in self.page._mounted.values())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened_hall(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hall]:
    doors: list[MediaDoor] = []
    engine = Held()
    await engine.start()
    limits = QueueLimits(places_of_one=OF_ONE)
    folder = tmp_path_factory.mktemp("office")
    office = furnished(folder, doors, engine=engine, places=PLACES, limits=limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onsight.ui.layout._SESSIONS", TABS)
        async with opened(office.desk.place, tmp_path_factory.mktemp("uploads")) as (client, _):
            page = next(
                route.app
                for route in client._transport.app.routes  # type: ignore[attr-defined]
                if isinstance(route, Mount)
            )
            config = (await client.get("/ui/en/config")).json()
            field = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "message")
            asked = next(one["id"] for one in config["dependencies"] if [field, "submit"] in one["targets"])
            yield Hall(client, page, office.admission, engine, asked)
    doors[0].close()


@pytest_asyncio.fixture(loop_scope="module")
async def hall(opened_hall: Hall, monkeypatch: pytest.MonkeyPatch) -> Hall:
    """The hall, in which nobody is any more; answers begin at once."""
    opened_hall.engine.goes_on.set()
    await until(lambda: opened_hall.running() == 0)
    with monkeypatch.context() as patch:
        patch.setattr("onsight.ui.open_events._UNREAD_S", 0.0)
        assert (await opened_hall.ask("sweeper")).status_code == 200
        await opened_hall.read("sweeper")
    return opened_hall


async def test_those_beyond_the_places_are_refused_and_all_others_are_in_our_own_queue(hall: Hall) -> None:
    hall.engine.goes_on.clear()
    of_a = [await hall.ask(f"a{n}") for n in range(OF_ONE)]
    assert [one.status_code for one in of_a] == [200] * OF_ONE
    refused = await hall.ask("a-more")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json() == {"detail": load_words("en")("error.queue_full")}
    of_b = [await hall.ask(f"b{n}", "b", "ru") for n in range(PLACES - OF_ONE + 1)]
    assert [one.status_code for one in of_b] == [200] * (PLACES - OF_ONE) + [429]
    assert of_b[-1].json() == {"detail": load_words("ru")("error.queue_full")}
    await until(lambda: hall.admission.taken == PLACES)
    hall.engine.goes_on.set()
    told = [await hall.read(f"a{n}") for n in range(OF_ONE)]
    told += [await hall.read(f"b{n}", "ru") for n in range(PLACES - OF_ONE)]
    assert ["fake engine: hello" in one for one in told] == [True] * PLACES
    assert (await hall.ask("a-more")).status_code == 200
    assert "fake engine: hello" in await hall.read("a-more")


async def test_many_posts_at_once_are_no_way_past_the_count(hall: Hall) -> None:
    hall.engine.goes_on.clear()
    answers = await asyncio.gather(*(hall.ask(f"a{n}") for n in range(2 * OF_ONE)))
    taken = [one for one in answers if one.status_code == 200]
    assert 0 < len(taken) <= OF_ONE
    assert {one.status_code for one in answers} == {200, 429}


async def test_a_post_that_is_larger_than_any_of_the_pages_own_is_refused(hall: Hall) -> None:
    words = [{"text": "€" * 100_000, "files": []}, None, 8, 0.5]
    assert (await hall.ask("long", data=words)).status_code == 200
    assert "process_completed" in await hall.read("long")
    for path in ("queue/join", "run/predict", "cancel", "reset"):
        fields = {"data": words, "fn_index": hall.asks, "session_hash": "x", "event_id": "x"}
        assert (await hall.post(path, event_data="x" * (1 << 20), **fields)).status_code == 413, path


async def test_what_the_page_does_not_read_is_not_kept(hall: Hall) -> None:
    hall.engine.goes_on.clear()
    assert (await hall.ask("tab", event_data=["x" * 1000], oauth_token="x")).status_code == 200
    events = hall.page._mounted["en"].get_blocks()._queue.event_ids_to_events.values()
    (event,) = (one for one in events if one.session_hash == "tab")
    assert (event.data.event_data, event.data.oauth_token) == (None, None)


async def test_answers_that_nobody_reads_count_until_they_are_dropped(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(OF_ONE):
        assert (await hall.ask("unread")).status_code == 200
    await until(lambda: hall.running() == 0)
    assert (await hall.ask("more")).status_code == 429
    monkeypatch.setattr("onsight.ui.open_events._UNREAD_S", 0.0)
    assert (await hall.ask("more")).status_code == 200
    assert hall.tabs() == {"more"}


async def test_an_answer_is_kept_for_who_reads_it_however_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.ui.open_events._UNREAD_S", 0.0)
    queue = SimpleNamespace(event_ids_to_events={}, pending_messages_per_session={}, pending_event_ids_session={})
    events = OpenEvents(Admission(2))
    events.watch("en", queue)

    def ask(tab: str) -> None:
        with events.asking("en", tab, tab):
            queue.pending_event_ids_session[tab] = {"event"}

    ask("slow")
    with events.reading("en", "slow"):
        ask("other")
        assert set(queue.pending_event_ids_session) == {"slow", "other"}
    ask("third")
    assert set(queue.pending_event_ids_session) == {"third"}


async def test_of_tabs_that_are_closed_nothing_is_kept_but_the_last_conversations(hall: Hall) -> None:
    for number in range(TABS + 10):
        assert (await hall.ask(f"t{number}")).status_code == 200
        assert "fake engine: hello" in await hall.read(f"t{number}")
    assert len(hall.tabs()) < 5
    assert hall.sessions() == TABS
