"""The ColQwen2.5 service's document, line by line, against a real server; where it is wrong, the true values."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from pydantic import ValidationError

from onsight import __version__
from onsight.api.compat.colqwen import PatchesRequest, QueriesRequest
from onsight.engines.torch_engine.families.colqwen import ColQwen
from tests.embedders import png, served_embedder
from tests.engines.torch_engine.embedding import BLUE, GREEN, RED, embed, farthest, load
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import draw

pytestmark = pytest.mark.model

EXACT = 1e-5
PAGES = [draw(RED, 90, 60), draw(BLUE, 300, 40), draw(GREEN, 120, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "colqwen", true_pictures=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> ColQwen:
    return load(folder)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served_embedder(folder) as address:
        yield address


def curl(lines: str, url: str, folder: Path) -> dict[str, object]:
    """Run the document's own lines against `url` in `folder`; the JSON that they print."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["bash", "-c", lines.replace("http://localhost:7000", url)],
        cwd=folder, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def post_pages(url: str, *files: bytes | str) -> httpx.Response:
    parts = [("files", (f"image{number}.jpg", file)) for number, file in enumerate(files, 1)]
    return httpx.post(url + "/embed/images", files=parts, timeout=60)


def test_the_documents_query_lines_work(url: str, tmp_path: Path, model: ColQwen) -> None:
    answer = curl(
        """curl -X POST "http://localhost:7000/embed/queries" \\
     -H "Content-Type: application/json" \\
     -d '{"queries": ["example query"]}'""",
        url,
        tmp_path,
    )
    (made,) = answer["embeddings"]  # type: ignore[misc]
    assert farthest(embed(model, "example query")[0], torch.tensor(made)) <= EXACT


def test_the_documents_image_lines_work(url: str, tmp_path: Path, model: ColQwen) -> None:
    for number, page in enumerate(PAGES[:2], 1):
        (tmp_path / f"image{number}.jpg").write_bytes(png(page))
    answer = curl(
        """curl -X POST "http://localhost:7000/embed/images" \\
     -H "Content-Type: multipart/form-data" \\
     -F "files=@image1.jpg" \\
     -F "files=@image2.jpg\"""",
        url,
        tmp_path,
    )
    for page, one in zip(PAGES, answer["embeddings"], strict=False):  # type: ignore[call-overload]
        assert set(one) == {"embedding", "image_patch_start", "image_patch_len"}
        assert farthest(embed(model, page)[0], torch.tensor(one["embedding"])) <= EXACT
    assert len(answer["embeddings"]) == 2  # type: ignore[arg-type]


def test_the_first_numbers_are_those_that_they_have_always_been(url: str) -> None:
    (query,) = httpx.post(url + "/embed/queries", json={"queries": "example query"}).json()["embeddings"]
    (page,) = post_pages(url, png(PAGES[0])).json()["embeddings"]
    assert query[0][:4] == pytest.approx([-0.09286, 0.10835, -0.03184, -0.07312], abs=1e-4)
    assert page["embedding"][0][:4] == pytest.approx([-0.13193, 0.19501, 0.13192, 0.04674], abs=1e-4)
    assert page["embedding"][page["image_patch_start"]][:4] == pytest.approx(
        [-0.0632, -0.09534, 0.03794, -0.10173], abs=1e-4
    )


def test_queries_may_be_one_text_or_a_list(url: str) -> None:
    one = httpx.post(url + "/embed/queries", json={"queries": "a photo of a cat"}).json()["embeddings"]
    two = httpx.post(url + "/embed/queries", json={"queries": ["a photo of a cat", "a dog"]}).json()["embeddings"]
    assert len(one) == 1
    assert len(two) == 2
    assert {len(vector) for vector in one[0]} == {128}
    assert torch.tensor(one[0]).sub(torch.tensor(two[0])).abs().max() <= EXACT
    assert len(two[0]) > len(two[1]), "no row is padding"


def test_spans_do_not_depend_on_who_is_in_the_batch(url: str, model: ColQwen) -> None:
    files = [png(page) for page in PAGES]
    alone = [post_pages(url, file).json()["embeddings"][0] for file in files]
    together = post_pages(url, *files).json()["embeddings"]
    sizes = []
    for page, one, other in zip(PAGES, alone, together, strict=True):
        (expected,) = embed(model, page)
        columns, rows = model.n_patches(page.width, page.height)
        assert (one["image_patch_start"], one["image_patch_len"]) == (expected.image.start, columns * rows)
        assert (other["image_patch_start"], other["image_patch_len"]) == (expected.image.start, columns * rows)
        assert len(other["embedding"]) == len(one["embedding"]) == expected.rows
        assert farthest(expected, torch.tensor(other["embedding"])) <= EXACT
        sizes.append(expected.rows)
    assert len(set(sizes)) == 3


def test_info_tells_the_truth(url: str, model: ColQwen) -> None:
    assert httpx.get(url + "/info").json() == {
        "version": __version__,
        "device": "cpu",
        "dtype": "torch.float32",
        "flash_attn": False,
        "spatial_merge_size": 2,
        "dim": 128,
        "image_token_id": model.image_token_id,
    }


def test_patches_are_counted_and_a_bad_size_answers_in_its_place(url: str) -> None:
    sizes = [(1024, 768), (512, 512), (0, 10), (5000, 10), (30_000, 30_000)]
    body = {"dimensions": [{"width": width, "height": height} for width, height in sizes]}
    answer = httpx.post(url + "/patches", json=body)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert results[0] == {"width": 1024, "height": 768, "n_patches_x": 32, "n_patches_y": 24}
    assert results[1] == {"width": 512, "height": 512, "n_patches_x": 18, "n_patches_y": 18}
    assert [set(one) for one in results[2:4]] == [{"width", "height", "error"}] * 2
    assert results[2]["error"].startswith("0x10 px is no picture's size")
    assert results[4]["n_patches_x"] * results[4]["n_patches_y"] <= 768


def test_as_many_sizes_as_the_server_takes_inputs_are_counted(url: str) -> None:
    answer = httpx.post(url + "/patches", json={"dimensions": [{"width": 0, "height": 0}] * 1024})
    assert (answer.status_code, len(answer.json()["results"])) == (200, 1024)


def test_of_bad_entries_the_first_is_found_and_no_other_is_looked_for() -> None:
    for body in (PatchesRequest, QueriesRequest):
        (field,) = body.model_fields
        with pytest.raises(ValidationError) as refused:
            body.model_validate({field: [None] * 50_000})
        assert refused.value.error_count() == 1


def test_root_and_health_answer(url: str) -> None:
    root = httpx.get(url).json()
    assert {"message", "version"} <= set(root)
    health = httpx.get(url + "/health").json()
    assert (health["status"], health["device"]) == ("healthy", "cpu")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/embed/queries", {"queries": []}, 400, "queries is empty"),
        ("/embed/queries", {"queries": ["a"] * 10_000}, 400, "queries has 10000 items; the limit is 1024"),
        ("/embed/queries", {}, 422, "queries"),
        ("/embed/queries", {"queries": 5}, 422, "queries"),
        ("/embed/queries", {"queries": ["a", 5]}, 422, "queries"),
        ("/embed/queries", {"queries": ["word " * 3000]}, 400, "tokens"),
        ("/patches", {"dimensions": []}, 400, "dimensions is empty"),
        ("/patches", {"dimensions": [{"width": 0, "height": 0}] * 1025}, 400, "dimensions has 1025 items; the limit"),
        ("/patches", {"dimensions": [{"width": "a", "height": 1}]}, 422, "width"),
        ("/patches", {}, 422, "dimensions"),
        ("/patches", {"dimensions": [{"width": 1_000_001, "height": 1}]}, 422, "width"),
        ("/patches", {"dimensions": [{"width": 10**400, "height": 10**400}]}, 422, "width"),
        ("/patches", {"dimensions": [{"width": -(10**400), "height": 5}]}, 422, "width"),
    ],
)
def test_bad_bodies_are_refused_in_the_services_own_words(
    url: str, path: str, body: object, status: int, said: str
) -> None:
    answer = httpx.post(url + path, json=body)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert list(answer.json()) == ["detail"]
    if status == 422:
        assert detail[0]["loc"][0] == "body"
        assert said in detail[0]["loc"]
        assert set(detail[0]) == {"type", "loc", "msg"}
    else:
        assert said in detail


def test_bad_files_are_refused_by_name(url: str) -> None:
    good = png(PAGES[0])
    for bad in (b"", "this is text", good[:60]):
        answer = post_pages(url, good, bad)
        assert answer.status_code == 400, answer.text
        assert "image2.jpg" in answer.json()["detail"]
        assert "image1.jpg" not in answer.json()["detail"]
    answer = post_pages(url, *[good] * 33)
    assert answer.status_code == 400
    assert "32" in answer.json()["detail"]


def test_a_page_of_30000_px_is_refused_by_its_header(url: str) -> None:
    size = struct.pack(">II", 30_000, 30_000) + bytes([8, 2, 0, 0, 0])
    header = b"IHDR" + size
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    answer = post_pages(url, bomb + b"\0\0\0\0IEND\xaeB`\x82")
    assert answer.status_code == 400
    assert "30000x30000" in answer.json()["detail"]


def test_forms_without_files_are_unprocessable(url: str) -> None:
    for answer in (
        httpx.post(url + "/embed/images", json={"files": []}),
        httpx.post(url + "/embed/images", files={"other": (None, "text")}),
        httpx.post(url + "/embed/images"),
    ):
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"][0]["loc"][0] == "body"
    assert httpx.post(url + "/embed/images", files={"image": ("a.png", b"x")}).status_code == 400
    wrong = httpx.get(url + "/embed/queries")
    assert wrong.status_code == 405
    assert isinstance(wrong.json()["detail"], str)


def test_the_description_names_the_routes(url: str) -> None:
    paths = httpx.get(url + "/openapi.json", timeout=60).json()["paths"]
    assert {"/info", "/patches", "/embed/queries", "/embed/images"} <= set(paths)


def test_as_many_files_as_the_server_allows_are_taken(folder: Path) -> None:
    page = png(draw(RED, 30, 30))
    with served_embedder(folder, media_max_images=40) as url:
        answer = post_pages(url, *[page] * 40)
        assert (answer.status_code, len(answer.json()["embeddings"])) == (200, 40)
        answer = post_pages(url, *[page] * 41)
        assert (answer.status_code, answer.json()) == (400, {"detail": "the form has more than 40 parts"})
    with served_embedder(folder, media_max_images=2) as url:
        answer = post_pages(url, *[page] * 3)
        assert (answer.status_code, "the limit is 2 (media.max_images)" in answer.text) == (400, True)
