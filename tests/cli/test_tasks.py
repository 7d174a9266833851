"""`onsight caption`, `ocr`, `locate`, `describe`: many pictures, resumed results, failures that stop nobody."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image as Pillow
from typer.testing import CliRunner

from onsight.cli import commands
from onsight.core.errors import OnsightError
from onsight.core.geometry import Box, Point, Size
from tests.api.conftest import Bench
from tests.api.conftest import build as build
from tests.api.finder import SPOT, Finder
from tests.api.test_tasks import CARDS, boxes, found, pair, spotted
from tests.media.papers import fill, page, paper, pdf

Onsight = Callable[..., Awaitable[Result]]


@asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[Onsight]:
    """`await onsight("ocr", "a.png")` runs the command against the bench."""
    async with bench.served() as url:

        async def onsight(*words: str, sent: bytes = b"") -> Result:
            return await asyncio.to_thread(CliRunner().invoke, commands, [*words, "--url", url], input=sent)

        yield onsight


@pytest.fixture
def peek(build: Callable[..., Bench]) -> tuple[Bench, Finder]:
    return found(build, CARDS["peek"], pair)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder of its own, and a file that is none."""
    (tmp_path / "inner").mkdir()
    for name in ("a.png", "b.PNG", "inner/c.png"):
        (tmp_path / name).write_bytes(spotted(Size(200, 100), Box(40, 20, 60, 40)))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_a_folder_is_answered_picture_by_picture_in_order(peek: tuple[Bench, Finder], folder: Path) -> None:
    async with serving(peek[0]) as onsight:
        done = await onsight("locate", str(folder), "--target", "the spot")
    names = [str(folder / name) for name in ("a.png", "b.PNG", "inner/c.png")]
    assert done.exit_code == 0, done.output
    assert done.stdout == "".join(f"{name}:\n50.0 30.0 0.55\n\n" for name in names)
    assert peek[1].texts == ["Where is the spot?"] * 3


async def test_one_picture_prints_its_answer_alone(peek: tuple[Bench, Finder], folder: Path) -> None:
    async with serving(peek[0]) as onsight:
        assert (await onsight("caption", str(folder / "a.png"))).stdout == "(250, 300)\n"
        assert (await onsight("ocr", "-", sent=(folder / "a.png").read_bytes())).stdout == "(250, 300)\n"
        done = await onsight("describe", str(folder / "a.png"), "--box", "20,10,40,50", "--json")
    assert lines(done.stdout)[0]["asked"] == {"task": "describe", "box": "20,10,40,50"}
    assert peek[1].texts[-1] == "What is in the box (100, 100, 200, 500)?"


async def test_a_bad_file_is_reported_and_the_others_go_on(peek: tuple[Bench, Finder], folder: Path) -> None:
    names = [str(folder / name) for name in ("notes.txt", "gone.png", "a.png")]
    async with serving(peek[0]) as onsight:
        done = await onsight("ocr", *names, "http://127.0.0.1:1/x.png", "--json")
    told = lines(done.stdout)
    assert done.exit_code == 1
    assert [("error" in one) for one in told] == [True, True, False, True]
    assert f"onsight: {names[1]}: cannot be read: No such file or directory" in done.stderr
    assert f"onsight: {names[0]}: " in done.stderr
    assert "http://127.0.0.1:1/x.png" in [ref.source for ref in peek[0].door.asked]


async def test_a_second_run_resumes_and_asks_again_what_failed(peek: tuple[Bench, Finder], folder: Path) -> None:
    out = folder / "results.jsonl"
    ask = ("locate", str(folder / "a.png"), str(folder / "later.png"), "--target", "x", "--out", str(out))
    async with serving(peek[0]) as onsight:
        assert (await onsight(*ask)).exit_code == 1
        (folder / "later.png").write_bytes((folder / "a.png").read_bytes())
        second = await onsight(*ask)
        with out.open("a") as file:
            file.write('{"image": "torn')
        third = await onsight(*ask)
        other = await onsight(*ask[:4], "y", "--out", str(out))
    assert (second.exit_code, third.exit_code, other.exit_code) == (0, 0, 0)
    assert f"1 of 2 were in {out} already" in second.stderr
    assert third.stdout == ""
    assert f"2 of 2 were in {out} already" in third.stderr
    assert peek[1].texts == ["Where is x?"] * 2 + ["Where is y?"] * 2
    kept = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    names = ["a.png", "a.png", "later.png", "later.png", "later.png"]
    assert sorted(Path(line["image"]).name for line in kept) == names


async def test_patterns_and_folders_mean_each_picture_once(peek: tuple[Bench, Finder], folder: Path) -> None:
    async with serving(peek[0]) as onsight:
        done = await onsight("ocr", str(folder / "*.png"), str(folder / "**" / "c.*"), str(folder / "a.png"), "--json")
        nothing = await onsight("ocr", str(folder / "*.webp"))
    assert [Path(str(one["image"])).name for one in lines(done.stdout)] == ["a.png", "c.png"]
    assert isinstance(nothing.exception, OnsightError)
    assert "holds no picture" in str(nothing.exception)


async def test_what_was_found_is_drawn_upright(build: Callable[..., Bench], tmp_path: Path) -> None:
    bench, _ = found(build, CARDS["qwen2_5_vl"], boxes)
    (tmp_path / "a.png").write_bytes(spotted(Size(400, 200), Box(100, 50, 300, 150), 6))
    out = tmp_path / "drawn.png"
    async with serving(bench) as onsight:
        done = await onsight("locate", str(tmp_path / "a.png"), "--target", "x", "--shape", "box", "--draw", str(out))
        several = await onsight("locate", "-", "--target", "x", "--draw", str(out))
    assert done.exit_code == 0, done.output
    drawn = Pillow.open(io.BytesIO(out.read_bytes()))
    assert drawn.size == (400, 200)
    assert drawn.getpixel((200, 100)) == SPOT
    assert drawn.getpixel((200, 50)) not in (SPOT, (255, 255, 255))
    assert drawn.getpixel((50, 100)) == (255, 255, 255)
    assert "exactly one picture" in str(several.exception)


async def test_a_busy_server_is_asked_again(build: Callable[..., Bench], folder: Path) -> None:
    bench = build(card=CARDS["peek"], places=1)
    async with serving(bench) as onsight:
        done = await onsight("ocr", str(folder), "--at-once", "3", "--json")
    assert done.exit_code == 0, done.output
    assert len(lines(done.stdout)) == 3


async def test_a_server_that_is_not_there_is_one_sentence_a_picture(folder: Path) -> None:
    words = ["ocr", str(folder / "a.png"), "--url", "http://127.0.0.1:9"]
    done = await asyncio.to_thread(CliRunner().invoke, commands, words)
    assert done.exit_code == 1
    assert "cannot be reached (ConnectError); is `onsight serve` running there?" in done.stderr


@pytest.mark.model
def test_peek_in_this_process_answers_a_folder(folder: Path) -> None:
    done = CliRunner().invoke(commands, ["caption", str(folder), "--json", "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert all(str(one["text"]).startswith("A ") for one in lines(done.stdout))
    assert len(lines(done.stdout)) == 3


def words(start: Point, stop: Point) -> str:
    return f"at {round(start.y)}"


async def test_a_pdfs_pages_are_read_and_the_results_name_them(build: Callable[..., Bench], tmp_path: Path) -> None:
    bench, _ = found(build, CARDS["peek"], words)
    (tmp_path / "a.pdf").write_bytes(pdf([page(fill(SPOT, (20, height, 10, 10)), 100, 100) for height in (90, 50, 0)]))
    (tmp_path / "b.png").write_bytes(spotted(Size(100, 100), Box(40, 20, 60, 40)))
    out = tmp_path / "results.jsonl"
    async with serving(bench) as onsight:
        whole = await onsight("ocr", str(tmp_path))
        two = ("caption", str(tmp_path / "a.pdf"), "--pages", "3,1", "--out", str(out))
        some, again, more = await onsight(*two), await onsight(*two), await onsight(*two[:3], "2", *two[4:])
        missing = await onsight("ocr", str(tmp_path / "a.pdf"), "--pages", "4")
        wrong = await onsight("ocr", str(tmp_path / "a.pdf"), "--pages", "2-1")
        no_pdf = await onsight("locate", str(tmp_path), "--target", "x", "--json")
    a, b = str(tmp_path / "a.pdf"), str(tmp_path / "b.png")
    assert whole.stdout == f"{a}:\npage 1:\nat 0\n\npage 2:\nat 400\n\npage 3:\nat 900\n\n{b}:\nat 200\n\n"
    assert some.stdout == "page 3:\nat 900\n\npage 1:\nat 0\n"
    assert (again.stdout, more.stdout) == ("", "at 400\n")
    assert [[one["page"] for one in kept["pages"]] for kept in lines(out.read_text())] == [[3, 1], [2]]  # type: ignore[attr-defined]
    assert (missing.exit_code, "the PDF has 3" in missing.stderr) == (1, True)
    assert "--pages '2-1': 2-1 runs backwards; write 1-2" in str(wrong.exception)
    assert [one["image"] for one in lines(no_pdf.stdout)] == [b]


async def test_lines_are_in_the_results(peek: tuple[Bench, Finder], folder: Path) -> None:
    async with serving(peek[0]) as onsight:
        done = await onsight("ocr", str(folder / "a.png"), "--lines", "--json")
    (result,) = lines(done.stdout)
    assert result["lines"] == [{"text": "(250, 300)"}]
    assert result["asked"] == {"task": "ocr", "lines": "true"}


async def test_chat_takes_a_pdf_for_its_pages(peek: tuple[Bench, Finder], tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(paper())
    async with serving(peek[0]) as onsight:
        done = await onsight("chat", "What is it?", "-a", str(tmp_path / "a.pdf"))
    assert done.exit_code == 0, done.output
    assert [image.page for image in peek[1].asked[0].messages[0].images] == [1, 2, 3]
