"""`onsight embed` and `onsight search`: files of vectors, an index, a page found and drawn on; bad files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image as Pillow

from tests.cli.conftest import RunCommand
from tests.embedders import served_embedder
from tests.media.papers import encrypted, paper, with_bad_pages
from training.evaluate_leaf import FIRST_SEED, STYLE
from training.leaf import LEAF
from training.pages import draw_page

pytestmark = pytest.mark.model

QUERY = "telescope in the meadow"
FOUND = 8
"""The page that answers it."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_embedder(LEAF) as address:
        yield address


@pytest.fixture(scope="module")
def booklet() -> list[Pillow.Image]:
    return [draw_page(FIRST_SEED + 50_000 + number, STYLE).image for number in range(10)]


@pytest.fixture
def folder(tmp_path: Path, booklet: list[Pillow.Image]) -> Path:
    """Two pictures and a PDF of the other eight pages; one of them answers `QUERY`."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for number, picture in enumerate(booklet[:2]):
        picture.save(folder / f"{number}.png")
    booklet[2].save(folder / "book.pdf", save_all=True, append_images=booklet[3:], resolution=72)
    return folder


def embed(run: RunCommand, url: str, *more: str, code: int = 0) -> str:
    done = run("embed", "--url", url, *more)
    assert done.code == code, done.err
    return done.err


def test_a_page_of_a_pdf_is_found_and_drawn_on(run: RunCommand, url: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra `search`")
    index = ("--qdrant", str(tmp_path / "index"))
    assert "10 pages are new, of 3 files" in embed(run, url, str(folder), "--out", "qdrant", *index)
    assert "0 pages are new, of 3 files" in embed(run, url, str(folder), "--out", "qdrant", *index)
    drawn = tmp_path / "drawn"
    done = run("search", QUERY, "--url", url, "--top", "2", "--draw", str(drawn), *index)
    first = done.out.splitlines()[0]
    assert (first.split()[0], first.split(maxsplit=2)[2]) == ("1", f"{folder / 'book.pdf'} page {FOUND - 1}")
    assert len(list(drawn.iterdir())) == 2
    with Pillow.open(drawn / f"1-book-{FOUND - 1}.png") as picture:
        inked = numpy.asarray(picture.convert("RGB"), numpy.int16)
    assert 0 < (inked[..., 0] - inked[..., 1] > 80).mean() < 0.3
    lines = run("search", QUERY, "--url", url, "--json", *index).out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["rank"] for one in found] == [1, 2, 3, 4, 5]
    assert (found[0]["page"], found[0]["model"]) == (FOUND - 1, "pages")


def test_a_page_that_has_changed_is_not_drawn_on(
    run: RunCommand, url: str, folder: Path, tmp_path: Path, booklet: list[Pillow.Image]
) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra `search`")
    index = ("--qdrant", str(tmp_path / "index"))
    embed(run, url, str(folder / "*.png"), "--out", "qdrant", *index)
    booklet[5].save(folder / "0.png")
    done = run("search", QUERY, "--url", url, "--draw", str(tmp_path / "drawn"), *index)
    assert done.code == 1
    assert "0.png cannot be drawn: it has changed" in done.err
    assert [file.name[1:] for file in (tmp_path / "drawn").iterdir()] == ["-1.png"]


def read(path: Path) -> tuple[dict[str, Any], list[int], numpy.ndarray]:
    """The columns of a file of vectors, how many each page has, and all of them."""
    if path.suffix == ".npz":
        with numpy.load(path) as file:
            held = {key: file[key] for key in file.files}
        return held, held["rows"].tolist(), held["vectors"]
    import pyarrow.parquet

    held = pyarrow.parquet.read_table(path).to_pydict()
    vectors = numpy.concatenate([numpy.array(page, numpy.float32) for page in held["vectors"]])
    return held, [len(page) for page in held["vectors"]], vectors


@pytest.mark.parametrize("name", ["pages.npz", "pages.parquet"])
def test_a_file_of_vectors_holds_every_page_once(
    run: RunCommand, url: str, folder: Path, tmp_path: Path, name: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs the extra `search`")
    out = tmp_path / name
    embed(run, url, str(folder / "*.png"), "--out", str(out))
    before, (_, _, first) = out.read_bytes(), read(out)
    assert "0 pages are new" in embed(run, url, str(folder / "*.png"), "--out", str(out))
    assert out.read_bytes() == before
    assert "8 pages are new, of 3 files" in embed(run, url, str(folder), "--out", str(out))
    held, rows, vectors = read(out)
    assert (vectors[: len(first)] == first).all()
    assert sorted(zip(held["path"], held["page"], strict=True)) == [
        (str(folder / "0.png"), 0),
        (str(folder / "1.png"), 0),
        *((str(folder / "book.pdf"), page) for page in range(1, 9)),
    ]
    assert vectors.shape == (sum(rows), 128)
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert all(start + length < count for (start, length, _), count in zip(held["image"], rows, strict=True))


def test_a_bad_file_is_reported_and_the_others_go_on(run: RunCommand, url: str, folder: Path, tmp_path: Path) -> None:
    (folder / "2.png").write_bytes(b"")
    (folder / "3.png").write_bytes(b"a text")
    (folder / "4.pdf").write_bytes(encrypted(b"secret"))
    (folder / "5.pdf").write_bytes(b"%PDF-1.7\nbroken")
    names = [str(folder), str(folder / "gone.png")]
    told = embed(run, url, *names, "--out", str(tmp_path / "x.npz"), code=1)
    for said in (
        "2.png: ",
        "3.png: this is not",
        "4.pdf: the PDF is enc",
        "5.pdf: cannot dec",
        "gone.png: cannot be r",
    ):
        assert said in told
    assert "10 pages are new, of 3 files" in told


def test_a_bad_page_is_reported_and_the_others_are_kept(run: RunCommand, url: str, tmp_path: Path) -> None:
    (tmp_path / "book.pdf").write_bytes(with_bad_pages())
    out = tmp_path / "x.npz"
    told = embed(run, url, str(tmp_path / "book.pdf"), "--out", str(out), code=1)
    assert f"onsight: {tmp_path / 'book.pdf'} page 2: page 2 of the PDF is 20000x20000 points" in told
    assert f"onsight: {tmp_path / 'book.pdf'} page 3: cannot decode page 3 of the PDF" in told
    assert "2 pages are new, of 1 files" in told
    assert read(out)[0]["page"].tolist() == [1, 4]
    told = embed(run, url, str(tmp_path / "book.pdf"), "--out", str(out), code=1)
    assert "page 2 of the PDF is" in told
    assert "0 pages are new, of 0 files" in told


def test_the_pages_that_are_wanted_are_embedded_and_no_others(run: RunCommand, url: str, tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(paper([(number, 0, 0) for number in range(0, 240, 20)]))
    (tmp_path / "short.pdf").write_bytes(paper())
    out = tmp_path / "x.npz"
    told = embed(run, url, str(tmp_path / "*.pdf"), "--pages", "2,4-12", "--out", str(out), code=1)
    assert "short.pdf: page 12 is asked for, but the PDF has 3" in told
    assert "10 pages are new, of 1 files" in told
    assert read(out)[0]["page"].tolist() == [2, *range(4, 13)]
    assert "--pages 'x': 'x' is no page" in embed(run, url, "a.pdf", "--pages", "x", "--out", str(out), code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.png", "--out", "x.txt"), "write NAME.npz, NAME.parquet or qdrant"),
        (("http://h/a.png", "--out", "x.npz"), "is no file"),
        (("a.png", "--out", "x.npz", "--compress", "int8"), "is for --out qdrant"),
        (("a.png", "--out", "qdrant", "--compress", "int8"), "made by Qdrant servers alone"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything(run: RunCommand, arguments: tuple[str, ...], said: str) -> None:
    done = run("embed", *arguments)
    assert (done.code, said in done.err) == (2, True), done.err


def test_vectors_of_two_models_never_meet(run: RunCommand, url: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    embed(run, url, str(folder / "0.png"), "--out", str(out))
    with served_embedder(LEAF, name="other") as other:
        assert "holds vectors of 'pages'" in embed(run, other, str(folder / "1.png"), "--out", str(out), code=2)


def test_a_file_that_is_none_of_ours_is_left_alone(run: RunCommand, url: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    out.write_bytes(b"something else")
    assert "no file of pages' vectors" in embed(run, url, str(folder / "0.png"), "--out", str(out), code=2)
    assert out.read_bytes() == b"something else"


def test_without_a_name_it_is_leaf_in_this_process(run: RunCommand, folder: Path, tmp_path: Path) -> None:
    done = run("embed", str(folder / "0.png"), "--out", str(tmp_path / "x.npz"), "--device", "cpu")
    assert done.code == 0, done.err
    with numpy.load(tmp_path / "x.npz") as file:
        assert file["model"].tolist() == ["leaf"]
