"""What each tab does with what a browser hands it; the same tasks answer as behind the API."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import itertools
import json
import re
from collections.abc import Callable
from contextlib import aclosing
from types import SimpleNamespace

import pytest
from PIL import Image as Pillow

from onsight.core.geometry import Size
from onsight.core.messages import Text
from onsight.engines.fake_engine import FakeScript
from tests.api.finder import Finder, middle
from tests.media.clips import clip
from tests.media.papers import BLUE, RED, paper
from tests.ui.conftest import Office, last

pytest.importorskip("gradio")

from onsight.ui.captions_tab import CaptionsTab
from onsight.ui.chat_tab import ChatTab
from onsight.ui.locate_tab import LocateTab
from onsight.ui.ocr_tab import OcrTab
from onsight.ui.region_tab import RegionTab

Furnish = Callable[..., Office]

REQUEST = SimpleNamespace(
    url=SimpleNamespace(scheme="http"), headers={"host": "127.0.0.1:8000"}, cookies={"onsight_page": "x"}
)


def spot(size: tuple[int, int] = (400, 200), box: tuple[int, int, int, int] = (100, 50, 119, 69)) -> bytes:
    """A white picture with a magenta spot, as PNG."""
    picture = Pillow.new("RGB", size, "white")
    picture.paste((255, 0, 255), (box[0], box[1], box[2] + 1, box[3] + 1))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def finder() -> Finder:
    def words(start: object, stop: object) -> str:
        point = middle(start, stop)
        return f"({point.x:.0f}, {point.y:.0f})"

    return Finder("0..1000", lambda size: Size(256, 256), words)


def first_image(html: str) -> Pillow.Image:
    return Pillow.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))


async def chat(office: Office, history: tuple, text: str, *files: str) -> tuple:
    return await last(ChatTab(office.desk).ask({"text": text, "files": list(files)}, history, 64, 0.0))


async def test_a_later_question_sends_the_whole_conversation(furnish: Furnish) -> None:
    engine = finder()
    office = furnish(engine=engine)
    upload = office.upload(data=spot())
    _, history, _, problem = await chat(office, (), "Where?", upload)
    messages, _, _, problem = await chat(office, history, "And now?")
    assert problem == ""
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    said = engine.asked[1].messages
    assert [message.role for message in said] == ["user", "assistant", "user"]
    assert len(said[0].images) == 1
    assert said[1].parts == (Text("(275, 300)"),)
    assert said[2].parts == (Text("And now?"),)


async def test_an_answer_comes_piece_by_piece_with_its_cost_at_the_end(furnish: Furnish) -> None:
    office = furnish(script=FakeScript(step_s=0.06))
    shown = [item async for item in ChatTab(office.desk).ask({"text": "one two three", "files": []}, (), 16, 0.0)]
    answers = [messages[-1]["content"] for messages, *_ in shown if messages[-1]["role"] == "assistant"]
    assert len(answers) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(answers[:-1]))
    assert re.search(r"<small>\d+ tokens · [\d.—]+ tokens/s · [\d.]+ s", answers[-1])


async def test_a_pictures_and_a_videos_look_are_shown_as_the_model_saw_them(office: Office) -> None:
    video = office.upload("clip.mp4", clip(frames=40, rate=10))
    messages, _, _, problem = await chat(office, (), "What moves?", office.upload(), video)
    assert problem == ""
    asked = messages[0]["content"]
    assert asked.count("<img ") == 1 + 4
    assert "4 frames that the model saw" in asked
    assert 'alt="picture, 20×10 px"' in asked


async def test_what_a_visitor_typed_is_text_on_the_page(office: Office) -> None:
    messages, *_ = await chat(office, (), "<img src=x onerror=alert(1)>")
    assert messages[0]["content"] == "&lt;img src=x onerror=alert(1)&gt;"


async def test_a_failed_question_goes_back_to_its_field(furnish: Furnish) -> None:
    office = furnish("ru")
    _, history, _, _ = await chat(office, (), "first")
    upload = office.upload(data=b"no picture")
    messages, kept, field, problem = await chat(office, history, "second", upload)
    assert (len(messages), kept) == (2, history)
    assert field == {"text": "second", "files": [upload]}
    assert problem.startswith('<p role="alert">Изображение не подходит: ')
    # The server's own words are English: folded away here, open where English is read.
    assert re.search('</p><details><summary>.*по-английски.*</summary><p lang="en">this is not a picture', problem)
    assert "<details open>" in (await chat(furnish(), (), "second", upload))[-1]


async def test_closing_a_chat_frees_its_place_and_leaves_no_unanswered_question(furnish: Furnish) -> None:
    office = furnish(script=FakeScript(step_s=0.01))
    async with aclosing(ChatTab(office.desk).ask({"text": "long", "files": []}, (), 500, 0.0)) as shown:
        _, history, _, _ = await anext(shown)
    assert office.admission.taken == 0
    messages, *_ = await chat(office, history, "next")
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_a_file_outside_the_uploads_is_not_read(office: Office) -> None:
    for tab in (OcrTab(office.desk).read("/etc/passwd"), RegionTab(office.desk).describe("/etc/passwd", "0,0,5,5")):
        assert "no longer on the server" in (await last(tab))[-1]
    _, _, _, problem = await chat(office, (), "read it", "/etc/passwd")
    assert "no longer on the server" in problem


async def test_ocr_asks_the_cards_question(office: Office) -> None:
    seen, text, figures, problem = await last(OcrTab(office.desk).read(office.upload()))
    assert text.startswith("fake engine: Read the picture.")
    assert "tokens/s" in figures
    assert (seen.count("<img "), problem) == (1, "")
    assert office.records[0].task == "ocr"


async def test_a_pdf_is_read_page_by_page(office: Office) -> None:
    seen, text, figures, _ = await last(OcrTab(office.desk).read(office.upload("paper.pdf", paper((RED, BLUE)))))
    assert seen.count("<img ") == 2
    assert [part.startswith("fake engine: Read the picture.") for part in text.split("\n\n")] == [True, True]
    assert int(figures.split(" ")[0]) > len(text.split("\n\n")[0].split())


async def test_a_tab_without_a_picture_says_so(furnish: Furnish) -> None:
    office = furnish("ru")
    assert (await last(OcrTab(office.desk).read(None)))[-1] == (
        '<p role="alert">Изображения нет. Сначала загрузите его.</p>'
    )


async def test_a_region_is_described_and_its_crop_shown(office: Office) -> None:
    upload = office.upload(data=spot())
    crop, text, figures, problem = await last(RegionTab(office.desk).describe(upload, "90,40,190,90"))
    assert text.startswith("fake engine: Describe the part.")
    assert (figures != "", problem) == (True, "")
    assert first_image(crop).size == (120, 60)
    assert "90,40 to 190,90" in crop


async def test_a_box_outside_the_picture_is_named_with_its_size(office: Office) -> None:
    *_, problem = await last(RegionTab(office.desk).describe(office.upload(), "1,1,30,5"))
    assert "ends at 30,5, outside the picture, which is 20×10 px" in problem
    assert office.admission.taken == 0


async def test_a_target_is_told_in_the_original_pixels_and_drawn(furnish: Furnish) -> None:
    office = furnish(engine=finder())
    upload = office.upload("my screen.png", spot())
    found = LocateTab(office.desk).find(upload, " it's @home ", "point", False, REQUEST)
    drawn, places, curl, problem = await last(found)
    assert problem == ""
    x, y = map(float, places.split(" ")[0].split(","))
    assert (abs(x - 110) < 1, abs(y - 60) < 1) == (True, True)
    picture = first_image(drawn).convert("RGB")
    red, green, blue = picture.getpixel((round(x), round(y) - 6))
    assert (red > 150, green < 110, blue < 180) == (True, True, True)
    assert curl == (
        "curl http://127.0.0.1:8000/v1/locate -H \"Authorization: Bearer $ONSIGHT_API_KEY\" -F 'file=@my screen.png'"
        " --form-string 'target=it'\"'\"'s @home' --form-string shape=point"
    )


async def test_an_answer_that_is_no_place_is_told_word_for_word(office: Office) -> None:
    *_, problem = await last(LocateTab(office.desk).find(office.upload(), "it", "point", False, REQUEST))
    assert "no place that can be read. It said: “fake engine: Where is it?" in problem


async def test_many_pictures_each_have_a_row_and_a_faulty_one_says_why(office: Office) -> None:
    uploads = [office.upload(f"{number}.png") for number in range(6)] + [office.upload("bad.png", b"no picture")]
    shown = [item async for item in CaptionsTab(office.desk).caption_all(uploads, "normal")]
    bars = [re.search(r'max="(\d+)" value="(\d+)"', bar).groups() for bar, *_ in shown]
    assert bars[0] == ("7", "0")
    assert bars[-1] == ("7", "7")
    _, table, as_csv, as_jsonl, problem = shown[-1]
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert [row["file"] for row in rows] == [*(f"{number}.png" for number in range(6)), "bad.png"]
    assert all("Describe the picture." in row["caption"] for row in rows[:6])
    assert rows[6]["error"].startswith("The picture cannot be used")
    assert [json.loads(line)["file"] for line in as_jsonl.splitlines()] == [row["file"] for row in rows]
    assert table.count("<tr>") == 8
    assert problem == ""


async def test_captions_wait_for_a_place_instead_of_failing(furnish: Furnish) -> None:
    office = furnish(places=1, script=FakeScript(step_s=0.001))
    uploads = [office.upload(f"{number}.png") for number in range(2)]
    _, _, _, as_jsonl, _ = await last(CaptionsTab(office.desk).caption_all(uploads, "normal"))
    assert all("caption" in json.loads(line) for line in as_jsonl.splitlines())


async def test_closing_captions_cancels_those_that_run(furnish: Furnish) -> None:
    office = furnish(script=FakeScript(step_s=0.05))
    uploads = [office.upload(f"{number}.png") for number in range(3)]
    async with aclosing(CaptionsTab(office.desk).caption_all(uploads, "normal")) as shown:
        await anext(shown)
        while not office.admission.taken:
            await asyncio.sleep(0.005)
    assert office.admission.taken == 0
