"""The page is no second door: of what a request names, by URL or by path, Gradio fetches and copies nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import given as given_by
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from onsight.api.app import ApiSettings, Services, create_app
from onsight.api.keys import KeyBook
from onsight.config import tell_gradio
from onsight.core.errors import TooLarge
from onsight.ui.gate import Gate
from onsight.ui.page import Page
from onsight.ui.words import load_words
from tests.embedders import behind_a_port
from tests.media.pictures import plain
from tests.security.doors import House

pytest.importorskip("gradio")


class Elsewhere(BaseHTTPRequestHandler):
    """A server of which nothing may be asked, and what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("content-type", "image/png")
        self.end_headers()
        self.wfile.write(plain())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Its address, which Gradio takes for one of the web, and its list."""
    monkeypatch.setattr("safehttpx.is_public_ip", lambda _: True)
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Noted", (Elsewhere,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


OUTSIDE: list[str] = []
"""Hosts that were dialled or looked up since the page was put together, but for this machine."""


def far(host: object) -> bool:
    return str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "None")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a page with all tabs that listens on a real port."""
    folder = tmp_path_factory.mktemp("uploads")
    house = House(folder)
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def dialled(dialling: socket.socket, address: object) -> object:
        if isinstance(address, tuple) and far(address[0]):
            OUTSIDE.append(address[0])
        return connect(dialling, address)  # type: ignore[arg-type]

    def looked_up(host: object, *rest: object, **named: object) -> object:
        if far(host):
            OUTSIDE.append(str(host))
        return look_up(host, *rest, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as environment:
        environment.setattr(socket.socket, "connect", dialled)
        environment.setattr(socket, "getaddrinfo", looked_up)
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_ALLOWED_PATHS"):
            environment.setenv(name, "")  # put back at the end
        tell_gradio(folder)
        place = house.desk.place
        page = Page(place, folder)
        services = Services(place.roster, place.chat, place.embed, place.admission, house.bench.metrics)
        app = create_app(services, ApiSettings(page=page))
        with behind_a_port(app, page.start, page.close) as address:
            with httpx.Client(base_url=f"{address}/ui/en", timeout=60) as client:
                yield client
    house.door.close()


def given(path: str) -> dict[str, object]:
    """What a browser sends of an upload, here of anything."""
    return {"path": path, "url": path, "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}


def asked_of_each_event(page: httpx.Client, path: str) -> Iterator[dict[str, object]]:
    """What each of the page's events that reads something says to such a file, in every one of its fields."""
    for event in page.get("/config").json()["dependencies"]:
        if not (event["inputs"] and event["backend_fn"]):
            continue
        session = f"tab{event['id']}"
        body = {"data": [given(path)] * len(event["inputs"]), "fn_index": event["id"], "session_hash": session}
        assert page.post("/gradio_api/queue/join", json=body).status_code == 200
        told = page.get("/gradio_api/queue/data", params={"session_hash": session}).text
        messages = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line]
        (ended,) = [message for message in messages if message["msg"] == "process_completed"]
        yield ended


def test_no_event_of_the_page_fetches_a_url(page: httpx.Client, elsewhere: tuple[str, list[str]]) -> None:
    address, asked = elsewhere
    folders = set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    ended = list(asked_of_each_event(page, f"{address}/picture.png"))
    assert asked == []
    assert len(ended) >= 5
    assert [one["success"] for one in ended] == [False] * len(ended)
    assert {str(one["output"]["error"]) for one in ended} == {  # type: ignore[index]
        "the page takes files that are uploaded to it; it fetches none by URL"
    }
    assert set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == folders


@pytest.mark.parametrize(("route", "status"), [("file=", 403), ("file/", 403), ("proxy=", 400)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_route_of_the_page_fetches_a_url(
    page: httpx.Client, elsewhere: tuple[str, list[str]], route: str, status: int, method: str
) -> None:
    address, asked = elsewhere
    answer = page.request(method, f"/gradio_api/{route}{address}/picture.png")
    assert asked == []
    assert answer.status_code == (405 if (method, route) == ("HEAD", "file/") else status)


def test_no_way_of_gradios_to_a_url_is_open(
    page: httpx.Client, elsewhere: tuple[str, list[str]], tmp_path: Path
) -> None:
    import gradio as gr
    from gradio import history, image_utils, processing_utils, route_utils
    from gradio_client.utils import synchronize_async
    from starlette.requests import Request

    address, asked = elsewhere
    block, request = gr.Image(), Request({"type": "http", "method": "GET", "headers": []})
    ways = (
        lambda: processing_utils.ssrf_protected_download(address, cache_dir=str(tmp_path)),
        lambda: processing_utils.save_url_to_cache(address, cache_dir=str(tmp_path)),
        lambda: image_utils.extract_svg_content(address),
        lambda: image_utils.extract_svg_content("https://huggingface.co/picture.svg"),  # which it never checks
        lambda: block.move_resource_to_block_cache(address),
        lambda: synchronize_async(block.async_move_resource_to_block_cache, address),
        lambda: synchronize_async(route_utils.secure_url_stream_response, address, request),
    )
    for way in ways:
        with pytest.raises(Exception, match=r"fetches none by URL|File not allowed"):
            way()
    assert synchronize_async(history.fetch_remote_asset, address) is None
    assert asked == []


def test_no_event_of_the_page_copies_a_file_of_this_machine(page: httpx.Client, tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    private.write_bytes(plain())
    ended = list(asked_of_each_event(page, str(private)))
    assert len(ended) >= 5
    assert [one["success"] for one in ended] == [False] * len(ended)
    assert list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("private.png")) == []


def test_an_upload_is_still_taken_and_the_rest_of_gradios_posts_are_not(page: httpx.Client) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    files = {"files": ("picture.png", plain(), "image/png")}
    (name,) = page.post("/gradio_api/upload", files=files).json()
    assert Path(name).is_relative_to(folder)
    before = set(folder.rglob("*"))
    for path in ("process_recording", "component_server", "upload/", "vibe-edit", "call/chat", "stream/1"):
        answer = page.post(f"/gradio_api/{path}", files={"video": ("film.mp4", b"#EXTM3U", "video/mp4")})
        assert (answer.status_code, answer.text) == (404, "the page does not ask for this"), path
    assert set(folder.rglob("*")) == before


def at(page: httpx.Client, language: str, path: str = "/") -> httpx.Response:
    return page.get(page.base_url.join(f"../{language}{path}"))


def test_the_page_asks_nobody_outside(page: httpx.Client) -> None:
    """From before it is put together, through all that a browser loads, an upload and an event."""
    for language in ("en", "ru"):
        shown = at(page, language)
        for path in {*re.findall(r"(?:src|href)=\"(\.?/[^\"]+)\"", shown.text), "config", "theme.css"}:
            assert at(page, language, f"/{path.lstrip('./')}").status_code == 200, path
    assert page.post("/gradio_api/upload", files={"files": ("a.png", plain(), "image/png")}).status_code == 200
    assert len(list(asked_of_each_event(page, ""))) >= 5
    looks = [one["id"] for one in page.get("/config").json()["dependencies"] if one["backend_fn"] and not one["queue"]]
    for look in looks:
        body = {"data": [], "fn_index": look, "session_hash": "tab"}
        assert page.post("/gradio_api/run/predict", json=body).status_code == 200
    assert len(looks) == 2
    assert OUTSIDE == []


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css"])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_what_the_page_is_made_of_names_no_other_origin(page: httpx.Client, language: str, path: str) -> None:
    answer = at(page, language, path)
    named = set(re.findall(r"(?:https?|wss?):(?:\\?/){2}([\w.:-]+)", answer.text))
    # The name of a kind of XML, which nobody fetches.
    assert named <= {page.base_url.netloc.decode(), "www.w3.org"}
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?//", answer.text)


def test_the_policy_keeps_the_browser_at_home_and_nobody_is_told_of_visitors(page: httpx.Client) -> None:
    from gradio.analytics import analytics_enabled

    for language in ("en", "ru"):
        policy = at(page, language).headers["content-security-policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'self'"
        assert rules["frame-ancestors"] == rules["object-src"] == "'none'"
        sources = {source for rule in rules.values() for source in rule.split()}
        assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
        assert at(page, language, "/config").json()["analytics_enabled"] is False
    assert analytics_enabled() is False


BAD_EVENTS: dict[str, dict[str, object]] = {
    "no such event": {"fn_index": 10_000},
    "a text for its number": {"fn_index": "1"},
    "no number": {"fn_index": None},
    "a truth for its number": {"fn_index": True},
    "too little data": {"data": []},
    "too much data": {"data": [None] * 50},
    "no list": {"data": {}},
    "no tab": {"session_hash": ""},
    "a tab with a separator": {"session_hash": "a<gradio-sep>b"},
    "a tab of half a character": {"session_hash": "\ud800"},
    "data of half a character": {"data": ["\ud800"] * 4},
    "no number of what triggered it": {"trigger_id": "x"},
}


@pytest.mark.parametrize("change", BAD_EVENTS.values(), ids=BAD_EVENTS)
@pytest.mark.parametrize("path", ["queue/join", "run/predict"])
def test_an_event_that_the_page_has_not_is_refused(page: httpx.Client, path: str, change: dict[str, object]) -> None:
    config = page.get("/config").json()
    chat = next(one for one in config["dependencies"] if len(one["inputs"]) == 4 and one["backend_fn"])
    body = {"data": [None] * 4, "fn_index": chat["id"], "session_hash": "tab", **change}
    answer = page.post(f"/gradio_api/{path}", content=json.dumps(body))
    assert (answer.status_code, answer.json()) == (400, {"detail": load_words("en")("error.invalid_request")})


SMALL = st.none() | st.booleans() | st.integers(-2, 60) | st.floats() | st.text(max_size=5) | st.just("tab")
ANY = st.recursive(SMALL, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "session_hash": ANY | st.just("tab"),
        "fn_index": ANY | st.integers(0, 30),
        "data": ANY | st.lists(ANY, max_size=6),
        "event_data": ANY,
        "trigger_id": ANY | st.none(),
        "event_id": ANY | st.just("x"),
        "batched": ANY,
        "simple_format": ANY,
    },
)
BODIES = st.binary(max_size=20) | ANY.map(json.dumps).map(str.encode) | FIELDS.map(json.dumps).map(str.encode)
KINDS = st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x", ""])


def test_no_post_breaks_the_page(page: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.ui.open_events._UNREAD_S", 0.0)
    codes = Counter[int]()

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(9)
    @given_by(st.sampled_from(["queue/join", "run/predict", "cancel", "reset", "upload"]), BODIES, KINDS)
    def post(path: str, body: bytes, kind: str) -> None:
        answer = page.post(f"/gradio_api/{path}", content=body, headers={"content-type": kind})
        codes[answer.status_code] += 1
        assert answer.status_code < 500, answer.text

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(9)
    @given_by(st.text(max_size=20) | st.sampled_from(["..", ".", "/", "a/../..", "\\", "x" * 500]), st.text(max_size=5))
    def upload(name: str, upload_id: str) -> None:
        files = {"files": (name, b"x", "image/png")}
        answer = page.post("/gradio_api/upload", files=files, params={"upload_id": upload_id})
        assert answer.status_code < 500, answer.text

    post()
    upload()
    assert codes[400] > 50
    assert len(list(asked_of_each_event(page, ""))) >= 5


async def test_one_key_typed_often_shows_nobody_else_out() -> None:
    gate, words = Gate(lambda key: key), load_words("en")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method == "POST":
            await (await gate.answer(request, words))(scope, receive, send)
        else:
            await PlainTextResponse(str(gate.visitor(request)))(scope, receive, send)

    def browser() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")

    async with browser() as one, browser() as first, browser() as many:
        await one.post("/", data={"key": "one"})
        await first.post("/", data={"key": "many"})
        for _ in range(100):
            await many.post("/", data={"key": "many"})
        told = [(await client.get("/")).text for client in (one, first, many)]
    assert told == ["one", "None", "many"]


async def test_a_key_of_half_a_character_opens_nothing() -> None:
    keys = KeyBook("sesame")
    assert keys.find("\ud800") is None
    gate, words = Gate(lambda key: "key" if keys.find(key) else None), load_words("en")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (await gate.answer(Request(scope, receive), words))(scope, receive, send)

    kind = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    body = b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\n\\ud800\r\n--x--\r\n'
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        assert (await client.post("/", content=body, headers=kind)).status_code == 401
        assert (await client.post("/", data={"key": "\ud7ff"})).status_code == 401
        assert (await client.post("/", content=b"key=%ED%A0%80")).status_code == 401
        with pytest.raises(TooLarge):
            await client.post("/", data={"key": "x" * 5000})
        assert (await client.post("/", data={"key": "sesame"})).status_code == 303
