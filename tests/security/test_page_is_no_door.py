"""The page is no second door: of what a request names, by URL or by path, Gradio fetches and copies nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from onsight.api.app import ApiSettings, Services, create_app
from onsight.config import tell_gradio
from onsight.ui.page import Page
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a page with all tabs that listens on a real port."""
    folder = tmp_path_factory.mktemp("uploads")
    house = House(folder)
    with pytest.MonkeyPatch.context() as environment:
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
