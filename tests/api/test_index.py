"""/v1/score and /v1/rerank with pages of the server's own index, named by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.core.geometry import Size
from onsight.index.collection import Collection, Place
from onsight.index.pages import KeptPage
from onsight.serve import assemble
from tests.embedders import png, served_embedder
from tests.engines.torch_engine.embedding import BLUE, GREEN, RED, embed, load
from tests.media.pictures import data_url
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import draw

pytest.importorskip("qdrant_client", reason="needs the extra `search`")
pytestmark = pytest.mark.model

PAGES = [draw(RED, 90, 60), draw(BLUE, 300, 40), draw(GREEN, 120, 200)]
UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "colqwen")


@pytest.fixture(scope="module")
def kept(folder: Path) -> list[KeptPage]:
    """Three pages, the last of which another model embedded."""
    made = embed(load(folder), *PAGES)
    return [
        KeptPage(f"/{number}.png", None, "d", Size(1, 1), "other" if number == 2 else "pages", one)
        for number, one in enumerate(made)
    ]


@pytest.fixture(scope="module")
def place(kept: list[KeptPage], tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(str(tmp_path_factory.mktemp("index")), "mine")
    collection = Collection(place)
    collection.prepare("pages", 128)
    collection.add(kept[:1])
    collection.add(kept[1:])
    collection.close()
    return place


@pytest.fixture(scope="module")
def url(folder: Path, place: Place) -> Iterator[str]:
    with served_embedder(folder, qdrant=place.where, qdrant_collection="mine") as address:
        yield address


def post(url: str, path: str, **body: object) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60)


def test_pages_of_the_index_score_as_the_pictures_do(url: str, kept: list[KeptPage]) -> None:
    pictures = [{"image": data_url(png(page))} for page in PAGES]
    ids = [{"id": page.id} for page in kept]
    for path in ("score", "rerank"):
        field = "queries" if path == "score" else "query"
        sent = post(url, f"/v1/{path}", **{field: "What colour?"}, documents=[pictures[1], pictures[0]]).json()
        named = post(url, f"/v1/{path}", **{field: "What colour?"}, documents=[ids[1], pictures[0]]).json()
        results, value = ("data", "score") if path == "score" else ("results", "relevance_score")
        assert [one["index"] for one in named[results]] == [one["index"] for one in sent[results]]
        assert [one[value] for one in named[results]] == pytest.approx([one[value] for one in sent[results]], abs=1e-5)
        assert named["usage"]["prompt_tokens"] < sent["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"query": "a", "documents": [{"id": UNKNOWN}]}, "documents", "has no page with the id"),
        ({"query": "a", "documents": [{"id": "x"}]}, "documents.0.id", "a whole number from 0 or a UUID"),
        ({"query": "a", "documents": [{"id": -1}]}, "documents.0.id", "a whole number from 0 or a UUID"),
        ({"query": "a", "documents": [{"id": 7, "model": "x"}]}, "documents.0.model", "unknown"),
        ({"query": {"id": 7}, "documents": [{"id": 7}]}, "query.0", "the index holds pages"),
    ],
)
def test_what_the_index_cannot_give_is_refused(url: str, body: dict[str, object], param: str, said: str) -> None:
    answer = post(url, "/v1/rerank", **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


def test_pages_of_another_model_are_refused(url: str, kept: list[KeptPage]) -> None:
    answer = post(url, "/v1/rerank", query="a", documents=[{"id": kept[2].id}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents.0")
    assert "was embedded by 'other'" in answer.json()["error"]["message"]


def test_a_server_without_an_index_says_so(folder: Path) -> None:
    with served_embedder(folder) as address:
        answer = post(address, "/v1/score", queries="a", documents=[{"id": 7}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents.0")
    assert "this server has no index; start it with --qdrant" in answer.json()["error"]["message"]


async def test_an_index_that_does_not_fit_stops_the_start(folder: Path, tmp_path: Path) -> None:
    settings = {"model": str(folder), "device": "cpu", "threads": 1, "qdrant": str(tmp_path / "index")}
    site = assemble(Settings(**settings))
    try:
        with pytest.raises(StartError, match="no collection 'pages'"):
            await site.start()
    finally:
        await site.close()
    with pytest.raises(StartError, match="no model that makes vectors is served"):
        assemble(Settings(engine="fake", qdrant=str(tmp_path)))
