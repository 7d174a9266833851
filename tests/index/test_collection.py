"""The index finds what late interaction finds, keeps what it is given, and refuses what it cannot compare."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy
import pytest

from onsight.core.embedding import Embedding, ImageSpan
from onsight.core.errors import InvalidRequest, StartError, Unavailable
from onsight.core.geometry import Size
from onsight.index.collection import Collection, Place
from onsight.index.pages import KeptPage, Page

pytest.importorskip("qdrant_client", reason="needs the extra `search`")

DIMS = 16


def vectors(rows: int, seed: int, image: bool = True) -> Embedding:
    numbers = numpy.random.default_rng(seed).standard_normal((rows, DIMS)).astype(numpy.float32)
    numbers /= numpy.linalg.norm(numbers, axis=1, keepdims=True)
    made = Embedding(numbers.tobytes(), rows, DIMS)
    return replace(made, image=ImageSpan(1, rows - 2, 1)) if image else made


def kept(number: int, *, rows: int = 5, file: str = "", digest: str = "d", page: int | None = None) -> KeptPage:
    return KeptPage(file or f"/f{number}.png", page, digest, Size(30, 20), "leaf", vectors(rows, number))


def numpy_scores(query: Embedding, pages: list[KeptPage]) -> list[float]:
    asked = numpy.array(query.vectors())
    return [float((asked @ numpy.array(page.embedding.vectors()).T).max(axis=1).sum()) for page in pages]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "index"), "pages")


@pytest.fixture
def collection(place: Place) -> Iterator[Collection]:
    opened = Collection(place)
    opened.prepare("leaf", DIMS)
    yield opened
    opened.close()


def test_the_best_five_are_those_of_late_interaction(collection: Collection) -> None:
    pages = [kept(number, rows=3 + number % 7) for number in range(60)]
    collection.add(pages)
    for seed in range(100, 110):
        query = vectors(4, seed, image=False)
        scores = numpy_scores(query, pages)
        best = sorted(range(len(pages)), key=lambda index: -scores[index])[:5]
        hits = collection.search(query, 5)
        assert [hit.page.file for hit in hits] == [pages[index].file for index in best]
        assert [hit.score for hit in hits] == pytest.approx([scores[index] for index in best], abs=1e-5)


async def test_what_is_kept_comes_back_and_is_there_the_next_time(collection: Collection, place: Place) -> None:
    pages = [kept(1), kept(2, file="/a.pdf", page=1), kept(3, file="/a.pdf", page=2)]
    collection.add(pages)
    collection.close()
    again = Collection(place)
    again.prepare("leaf", DIMS)
    asked = [pages[2], pages[0], pages[2], pages[1]]
    assert await again.fetch([page.id for page in asked]) == asked
    assert again.search(pages[1].embedding, 1)[0].page == Page("/a.pdf", 1, "d", Size(30, 20), "leaf")
    assert again.known("/a.pdf", "d") == {1, 2}
    assert again.known("/f1.png", "d") == {None}
    assert again.known("/f1.png", "other") == frozenset()
    with pytest.raises(InvalidRequest, match="no page with the id 7"):
        await again.fetch([pages[0].id, 7])
    again.close()


async def test_pages_are_read_a_few_at_a_time(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [kept(number) for number in range(10)]
    collection.add(pages)
    read: list[int] = []
    retrieve = collection._client.retrieve

    def noted(name: str, ids: list[Any], **rest: Any) -> object:
        read.append(len(ids))
        return retrieve(name, ids, **rest)

    monkeypatch.setattr(collection._client, "retrieve", noted)
    assert await collection.fetch([page.id for page in pages]) == pages
    assert read == [4, 4, 2]


async def test_an_index_that_hangs_keeps_nobody_but_its_own_waiting(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(collection._client, "retrieve", lambda *_, **__: goes_on.wait(60))
    waiting = [asyncio.create_task(collection.fetch([number])) for number in range(40)]
    try:
        async with asyncio.timeout(20):
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(int, "7") == 7
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)
    finally:
        goes_on.set()


def test_a_file_that_changed_replaces_all_its_pages(collection: Collection) -> None:
    collection.add([kept(1, file="/a.pdf", page=1), kept(2, file="/a.pdf", page=2), kept(3)])
    new = kept(4, file="/a.pdf", page=1, digest="e")
    collection.add([new])
    assert sorted(hit.page.file for hit in collection.search(new.embedding, 9)) == ["/a.pdf", "/f3.png"]
    assert (collection.known("/a.pdf", "d"), collection.known("/a.pdf", "e")) == (frozenset(), {1})


def test_a_folder_is_read_once_to_know_its_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for again in (False, True):
        collection = Collection(place)
        collection.prepare("leaf", DIMS)
        looked = dict.fromkeys(("scroll", "delete"), 0)

        def watch(name: str, looked: dict[str, int] = looked, client: Any = collection._client) -> None:
            true = client.__getattribute__(name)

            def noted(*given: object, **named: object) -> object:
                looked[name] += 1
                return true(*given, **named)

            monkeypatch.setattr(client, name, noted)

        for name in looked:
            watch(name)
        for number in range(20):
            assert collection.known(f"/f{number}.png", "d") == (frozenset({None}) if again else frozenset())
            collection.add([kept(number)])
            assert collection.known(f"/f{number}.png", "d") == {None}
        assert looked == {"scroll": 1, "delete": 0}
        collection.add([kept(1, digest="e")])
        assert (looked["delete"], collection.known("/f1.png", "d"), collection.known("/f1.png", "e")) == (
            1,
            frozenset(),
            {None},
        )
        collection.add([kept(1)])
        collection.close()


def test_what_cannot_be_compared_is_refused(collection: Collection, place: Place) -> None:
    collection.add([kept(1)])
    for model, dims, said in (("other", DIMS, "use --model leaf"), ("leaf", 8, "8 numbers a vector")):
        with pytest.raises(StartError, match=said):
            collection.prepare(model, dims)
    with pytest.raises(StartError, match="one at a time may have it"):
        Collection(place)
    with pytest.raises(StartError, match="made by Qdrant servers alone"):
        Collection(place, "int8")


def test_a_collection_that_is_not_there_is_named(place: Place) -> None:
    empty = Collection(place)
    with pytest.raises(StartError, match="no collection 'pages': make it with"):
        empty.check("leaf", DIMS)
    empty.close()


async def test_points_of_others_are_refused(collection: Collection) -> None:
    from qdrant_client import models

    collection._client.upsert("pages", [models.PointStruct(id=7, vector=[[1.0] * DIMS], payload={"model": "leaf"})])
    with pytest.raises(StartError, match="did not make"):
        collection.search(vectors(2, 1, image=False), 1)
    with pytest.raises(InvalidRequest, match="7 in the collection 'pages' is no page that `onsight embed` made"):
        await collection.fetch([7])


class StandIn(BaseHTTPRequestHandler):
    """As much of a Qdrant server as making a collection asks for; it notes what it is told."""

    told: list[tuple[str, str, object, str | None]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.told.append((self.command, self.path, json.loads(body or "null"), self.headers.get("api-key")))
        result = {"exists": False} if self.path.endswith("/exists") else True
        if self.path.endswith("/query"):
            result = {"points": []}
        if "/index" in self.path:
            result = {"operation_id": 1, "status": "completed"}
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_: object) -> None: ...


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize(("compression", "named"), [("int8", "scalar"), ("binary", "binary"), (None, None)])
def test_a_server_is_told_to_compare_by_late_interaction(compression: str | None, named: str | None) -> None:
    handler = type("Handler", (StandIn,), {"told": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        place = Place(f"http://127.0.0.1:{server.server_port}", "pages", "secret")
        collection = Collection(place, compression)  # type: ignore[arg-type]
        collection.prepare("leaf", DIMS)
        assert collection.search(vectors(2, 1, image=False), 7) == []
        collection.close()
    finally:
        server.shutdown()
        server.server_close()
    (made,) = (body for method, path, body, _ in handler.told if (method, path) == ("PUT", "/collections/pages"))
    (asked,) = (body for _, path, body, _ in handler.told if path == "/collections/pages/points/query")
    assert asked["params"]["quantization"] == {"rescore": True, "oversampling": 2.0}
    assert (asked["limit"], asked["with_payload"], asked.get("with_vector", False)) == (7, True, False)
    told = made["vectors"]
    assert (told["size"], told["distance"]) == (DIMS, "Dot")
    assert told["multivector_config"] == {"comparator": "max_sim"}
    assert list(told.get("quantization_config") or {}) == ([named] if named else [])
    assert {key for *_, key in handler.told} == {"secret"}


async def test_a_server_that_is_not_there_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    collection = Collection(Place("http://127.0.0.1:1", "pages"))
    with pytest.raises(StartError, match=r"Qdrant at http://127\.0\.0\.1:1 cannot do what it is asked"):
        collection.check("leaf", DIMS)
    with caplog.at_level(logging.WARNING), pytest.raises(Unavailable, match="the index cannot be read now") as caught:
        await collection.fetch([1])
    assert "127.0.0.1" not in caught.value.message, "where the index is concerns no caller"
    assert "Qdrant at http://127.0.0.1:1 cannot do" in caplog.text
    collection.close()
