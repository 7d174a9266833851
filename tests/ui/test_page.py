"""The whole page behind the whole application, without a browser: who is let in, what it says of itself, what it
serves."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from onsight.api.app import ApiSettings, Services, create_app
from onsight.api.keys import KeyBook, new_key, write_keys
from onsight.api.metrics import Metrics
from onsight.api.rates import Rate
from onsight.config import Settings, tell_gradio
from onsight.engines.torch_engine import TorchEmbedEngine
from onsight.media.door import MediaDoor
from onsight.serve import assemble
from onsight.tasks.embed import Embed
from onsight.tasks.roster import Roster
from onsight.ui.desk import Workplace
from onsight.ui.page import Page
from onsight.ui.words import load_words
from tests.ui.conftest import LEAF, LEAF_CARD, Office, furnished

pytest.importorskip("gradio")

KEY = "open sesame"
HTML = {"accept": "text/html", "accept-language": "ru-RU,ru;q=0.9"}

Opened = tuple[httpx.AsyncClient, Path]


def services_of(place: Workplace) -> Services:
    roster, admission = place.roster, place.admission
    return Services(roster, place.chat, place.embed, admission, Metrics(roster, admission, None))


@asynccontextmanager
async def opened(place: Workplace, folder: Path, key: str | None = None, root: str = "") -> AsyncIterator[Opened]:
    """A client of an application with a page that was started."""
    kept = dict(os.environ)
    tell_gradio(folder)
    keys = KeyBook(key)
    page = Page(place, folder, None if key is None else lambda given: "key" if keys.find(given) else None)
    services = services_of(place)
    app = create_app(services, ApiSettings(keys=keys, page=page))
    try:
        await page.start()
        transport = httpx.ASGITransport(app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client, folder
    finally:
        await page.close()
        os.environ.clear()
        os.environ.update(kept)


# One page for all: Gradio takes a while to put together.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    doors: list[MediaDoor] = []
    office = furnished(tmp_path_factory.mktemp("office"), doors)
    async with opened(office.desk.place, tmp_path_factory.mktemp("uploads")) as (found, _):
        yield found
    doors[0].close()


async def test_a_browser_is_led_to_the_page_in_its_language(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", headers=HTML, follow_redirects=True)
    assert [step.headers["location"] for step in answer.history] == ["ui", "/ui/", "/ui/ru/"]
    assert answer.status_code == 200
    assert '"page":' in answer.text


async def test_the_page_names_no_other_host_and_may_ask_none(client: httpx.AsyncClient) -> None:
    for language in ("en", "ru"):
        answer = await client.get(f"/ui/{language}/")
        head = answer.text.split("window.gradio_config")[0] + answer.text.split("</script>")[-1]
        assert not re.search(r"https?://(?!here)[a-z]", head)
        assert "manifest.json" not in answer.text
        assert f'lang="{language}"' in answer.text
        # Gradio's own labels are in the page's language, whatever the browser's is.
        assert f"<head><script>Object.defineProperty(navigator, 'language', {{value: '{language}'}})" in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "connect-src 'self'" in policy
        assert "http" not in policy


async def test_nothing_of_the_page_is_offered_as_an_api(client: httpx.AsyncClient) -> None:
    offered = (await client.get("/ui/en/gradio_api/info")).json()
    assert offered == {"named_endpoints": {}, "unnamed_endpoints": {}}


async def test_every_word_on_the_page_is_in_its_language(client: httpx.AsyncClient) -> None:
    config = (await client.get("/ui/ru/config")).json()
    labels = [item["props"].get("label") for item in config["components"] if item["props"].get("visible", True)]
    named = [label for label in labels if label]
    assert len(named) > 15
    assert [label for label in named if not re.search("[а-яё]", label, re.IGNORECASE)] == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../../etc/passwd", "/proc/self/environ", __file__])
async def test_the_file_route_refuses_what_nobody_uploaded(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"/ui/en/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


async def test_uploads_go_to_a_folder_of_their_own_that_is_removed(office: Office, tmp_path: Path) -> None:
    async with opened(office.desk.place, tmp_path / "uploads") as (client, folder):
        files = {"files": ("picture.png", b"pixels", "image/png")}
        (name,) = (await client.post("/ui/en/gradio_api/upload", files=files)).json()
        assert Path(name).is_relative_to(folder)
    assert not folder.exists()


async def test_a_server_with_a_key_asks_for_it_before_anything_is_shown(office: Office, tmp_path: Path) -> None:
    async with opened(office.desk.place, tmp_path / "uploads", KEY) as (client, _):
        words = load_words("ru")
        led = await client.get("/", headers=HTML, follow_redirects=True)
        assert [step.headers["location"] for step in led.history] == ["ui", "/ui/", "/ui/ru/"]
        assert (led.status_code, words("gate.title") in led.text) == (401, True)
        assert (await client.get("/")).headers["content-type"] == "application/json"
        asked = await client.get("/ui/ru/")
        assert (asked.status_code, words("gate.title") in asked.text) == (401, True)
        assert "gradio" not in asked.text
        for path in ("config", "gradio_api/info", "gradio_api/upload", "gradio_api/queue/join"):
            for method in ("GET", "POST"):
                assert (await client.request(method, f"/ui/ru/{path}")).status_code == 401
        wrong = await client.post("/ui/ru/", data={"key": "wrong"})
        assert (wrong.status_code, words("gate.wrong") in wrong.text, "set-cookie" in wrong.headers) == (
            401,
            True,
            False,
        )
        right = await client.post("/ui/ru/", data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, "/ui/ru/")
        cookie = right.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui"))
        assert KEY not in cookie
        assert (await client.get("/ui/ru/")).status_code == 200
        # The cookie opens the page alone: no other site can spend it on the API.
        assert (await client.get("/v1/models")).status_code == 401


async def test_under_a_root_path_the_key_is_remembered_for_the_page_there(office: Office, tmp_path: Path) -> None:
    async with opened(office.desk.place, tmp_path / "uploads", KEY, "/onsight") as (client, _):
        led = await client.get("/onsight/", headers=HTML, follow_redirects=True)
        assert [step.headers["location"] for step in led.history] == ["ui", "/onsight/ui/", "/onsight/ui/ru/"]
        right = await client.post("/onsight/ui/ru/", data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, "/onsight/ui/ru/")
        assert "path=/onsight/ui;" in right.headers["set-cookie"].lower()
        assert (await client.get("/onsight/ui/ru/")).status_code == 200


@pytest.mark.parametrize("headers", [{"x-forwarded-host": "a:b, c"}, {"x-gradio-server": "http://a:b"}])
async def test_an_address_of_the_page_that_cannot_be_read_is_refused(
    office: Office, tmp_path: Path, headers: dict[str, str]
) -> None:
    async with opened(office.desk.place, tmp_path / "uploads") as (client, _):
        assert (await client.get("/ui/en/", headers=headers)).status_code == 400
        assert (await client.get("/ui/en/", headers={"x-forwarded-host": "a:80, c"})).status_code == 200


async def test_a_key_that_is_taken_back_closes_the_page(office: Office, tmp_path: Path) -> None:
    valid = {KEY}
    folder = tmp_path / "uploads"
    tell = dict(os.environ)
    tell_gradio(folder)
    page = Page(office.desk.place, folder, lambda given: "key" if given in valid else None)
    os.environ.clear()
    os.environ.update(tell)
    transport = httpx.ASGITransport(page)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        # Only the door is asked here: what is behind it was not started.
        assert (await client.post("/ru/", data={"key": KEY})).status_code == 303
        valid.clear()
        assert (await client.get("/ru/config")).status_code == 401


async def ask(client: httpx.AsyncClient, question: str) -> str:
    """What the chat tab's events say, asked as a browser does."""
    config = (await client.get("/ui/en/config")).json()
    field = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "message")
    asked = next(one for one in config["dependencies"] if [field, "submit"] in one["targets"])
    body = {"data": [{"text": question, "files": []}, None, 8, 0.5], "fn_index": asked["id"], "session_hash": "tab"}
    joined = await client.post("/ui/en/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    return (await client.get("/ui/en/gradio_api/queue/data", params={"session_hash": "tab"})).text


@pytest.mark.parametrize("key", [KEY, None])
async def test_what_a_visitor_asks_is_asked_in_their_name_and_counted(tmp_path: Path, key: str | None) -> None:
    doors: list[MediaDoor] = []
    office = furnished(tmp_path / "office", doors)
    counted: list[str] = []
    rate = Rate("key", 2)

    def count(who: str) -> None:
        counted.append(who)
        rate.count(who)

    async with opened(replace(office.desk.place, count=count), tmp_path / "uploads", key) as (client, _):
        if key is not None:
            await client.post("/ui/en/", data={"key": key})
        told = [await ask(client, "hello") for _ in range(3)]
    doors[0].close()
    visitor = "127.0.0.1" if key is None else "key"
    assert [record.caller for record in office.records] == [visitor] * 2
    assert counted == [visitor] * 3
    sentence = load_words("en")("error.rate_limit_exceeded")
    assert [sentence in one for one in told] == [False, False, True]
    assert "fake engine: hello" in told[0]


async def test_a_retriever_alone_has_a_page_with_the_search_tab_alone(tmp_path: Path) -> None:
    doors: list[MediaDoor] = []
    engine = TorchEmbedEngine(LEAF, LEAF_CARD)
    place = furnished(tmp_path / "office", doors, finds=engine).desk.place
    roster = Roster([], place.roster.embedders)
    alone = replace(place, roster=roster, embed=Embed(roster, doors[0], place.admission))
    async with opened(alone, tmp_path / "uploads") as (client, _):
        config = (await client.get("/ui/ru/config")).json()
        tabs = [one["props"]["label"] for one in config["components"] if one["type"] == "tabitem"]
        assert tabs == [load_words("ru")("search.tab")]
    await engine.close()
    doors[0].close()


@pytest.mark.parametrize(
    ("models", "opens"), [(["leaf"], ["embed", "both"]), (["peek"], ["chat", "both"]), (["peek", "leaf"], ["both"])]
)
async def test_a_key_opens_the_page_that_does_no_more_than_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str], opens: list[str]
) -> None:
    file, keys = tmp_path / "keys.json", {}
    for name, scopes in (("chat", ["chat"]), ("embed", ["embed"]), ("both", ["chat", "embed"])):
        keys[name] = new_key(name, scopes)
    write_keys(file, [key for _, key in keys.values()])
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_ALLOWED_PATHS"):
        monkeypatch.setenv(name, "")  # put back at the end
    named = dict(zip(("model", "embed_model"), models, strict=False))
    site = assemble(Settings(**named, keys_file=file, ui=True, device="cpu"), with_page=True)
    transport = httpx.ASGITransport(site.page)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        codes = {name: (await client.post("/ru/", data={"key": key})).status_code for name, (key, _) in keys.items()}
    assert [name for name, code in codes.items() if code == 303] == opens
    await site.close()


async def test_without_a_page_there_is_nothing_at_ui(office: Office) -> None:
    place = office.desk.place
    services = services_of(place)
    transport = httpx.ASGITransport(create_app(services, ApiSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        assert (await client.get("/ui/")).status_code == 404
        assert (await client.get("/", headers=HTML)).headers["location"] == "docs"
