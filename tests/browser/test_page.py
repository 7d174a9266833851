"""Each tab of the page, end to end, on Peek, with a screen that the test draws."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from onsight.ui.words import Words, load_words
from tests.browser.conftest import Visit, playwright
from tests.media.clips import clip
from tests.servers import Served, get, served, wait_until
from tests.tiny_models import write_smolvlm
from training.draw import EVALUATION_STYLE, Screen, draw_screen
from training.evaluate_leaf import FIRST_SEED, STYLE, queries_about
from training.pages import FAMILY, draw_page

pytestmark = [pytest.mark.browser, pytest.mark.model]

Open = Callable[..., Visit]
LANGUAGES = {"en": "en-US", "ru": "ru-RU"}
TABS = ("chat", "ocr", "region", "locate", "search", "captions")
RATE = {"en": "tokens/s", "ru": "токенов/с"}


def expect(locator: object) -> object:
    return playwright.expect(locator)


def attach(visited: Visit, element: str, file: Path) -> None:
    """Upload `file` into the picture input `element`, and wait until it is shown."""
    visited.page.set_input_files(f"#{element} input[type=file]", str(file))
    visited.page.wait_for_selector(f"#{element} img")


def put(visited: Visit, file: Path) -> None:
    """Upload `file` into the text tab, and wait until it is there."""
    visited.page.set_input_files("#ocr-file input[type=file]", str(file))
    expect(visited.page.locator("#ocr-file tr.file")).to_have_count(1)


def ask(visited: Visit, question: str, *files: Path) -> None:
    """Type a question in the chat, with files, and send it with the keyboard."""
    if files:
        visited.page.set_input_files("#message input[type=file]", [str(file) for file in files])
        expect(visited.page.locator("#message .thumbnail-item")).to_have_count(len(files))
    field = visited.page.locator("#message textarea")
    field.fill(question)
    field.press("Enter")


def bot(visited: Visit) -> object:
    return visited.page.locator("#talk .bot.message")


def figures(visited: Visit) -> object:
    return visited.page.locator(".prose.figures:visible")


def text_of(visited: Visit, element: str) -> object:
    return visited.page.locator(f"#{element} textarea, #{element} input").first


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_speaks_the_browsers_language(visit: Open, language: str) -> None:
    visited, words = visit(LANGUAGES[language]), load_words(language)
    assert re.search(rf"/ui/{language}/$", visited.page.url)
    for tab in TABS:
        visited.page.get_by_role("tab", name=words(f"{tab}.tab"), exact=True).wait_for()
    expect(visited.page.locator("#state")).to_contain_text("peek")
    expect(visited.page.locator("#state")).to_contain_text("leaf")
    expect(visited.page.locator("#state")).to_contain_text(words("page.state_ready"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_second_question_knows_the_picture_and_the_first_answer(
    visit: Open, screen_file: Path, screen: Screen, language: str
) -> None:
    visited = visit(LANGUAGES[language])
    known = next(widget for widget in screen.widgets if widget.text == "Message")
    ask(visited, "Describe the screen.", screen_file)
    expect(bot(visited)).to_contain_text("7 widgets")
    expect(bot(visited)).to_contain_text(RATE[language])
    expect(visited.page.locator("#talk .user img")).to_have_count(1)
    ask(visited, "What color is Message?")
    expect(bot(visited)).to_have_count(2)
    expect(bot(visited).nth(1)).to_contain_text(known.colour)


# Names, kinds and sizes of files, and what only English is understood for: Peek's and Leaf's questions.
LATIN = (
    r"Onsight|English|peek|leaf|torch|cpu|PDF|CSV|JSONL|KB|\.txt|\.png|page_\d|screen|curl[^\n]*|[xy][12](,[xy][12])*"
    r"|Draft|the liability of the mayor"
)
SEEN = """() => {
  const texts = [document.title];
  for (const one of document.querySelectorAll('body *')) {
    if (one.closest('[lang=en], script, style, #captions-table tbody')) continue;
    if (!one.checkVisibility({visibilityProperty: true})) continue;
    for (const node of one.childNodes) if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
    for (const name of ['aria-label', 'title', 'placeholder', 'alt']) texts.push(one.getAttribute(name) ?? '');
  }
  return texts.map((text) => text.trim()).filter((text) => text);
}"""


def test_a_russian_page_shows_no_english(visit: Open, screen_file: Path, screen: Screen) -> None:
    # The browser speaks English: its visitor chose the Russian page.
    visited, words = visit("en-US"), load_words("ru")
    visited.page.get_by_text(load_words("en")("page.other_language")).click()
    visited.page.wait_for_url("**/ui/ru/")
    english: dict[str, list[str]] = {}
    for tab, fill in zip(TABS, (_chat, _ocr, _region, _locate, _search, _many), strict=True):
        visited.tab(words(f"{tab}.tab"))
        english[f"{tab}, empty"] = _english(visited)
        if tab in ("locate", "search", "captions"):
            fill(visited, words, screen_file, screen)
            english[tab] = _english(visited)
    assert {tab: texts for tab, texts in english.items() if texts} == {}


def _english(visited: Visit) -> list[str]:
    return [text for text in visited.page.evaluate(SEEN) if re.search("[A-Za-z]{2}", re.sub(LATIN, "", text))]


def test_two_pictures_are_both_seen(visit: Open, screen_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    draw_screen(7_100_004, EVALUATION_STYLE).image.save(other)
    visited = visit()
    ask(visited, "Describe the screen.", screen_file, other)
    expect(visited.page.locator("#talk .user img")).to_have_count(2)
    expect(bot(visited)).to_contain_text("screen")


def test_an_example_is_asked_with_two_clicks(visit: Open) -> None:
    visited = visit()
    visited.page.get_by_role("button", name="Describe the screen.").click()
    expect(visited.page.locator("#message .thumbnail-item")).to_have_count(1)
    visited.page.locator("#message textarea").press("Enter")
    expect(bot(visited)).to_contain_text("screen")


def test_everything_is_reached_and_asked_by_the_keyboard_alone(visit: Open) -> None:
    visited = visit()
    page, met = visited.page, []
    focused = """() => { const it = document.activeElement;
        return [it.getAttribute('role') || it.tagName.toLowerCase(), (it.innerText || it.placeholder || '').trim()] }"""

    def walk_to(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            met.append(page.evaluate(focused))
            if wanted in met[-1][1]:
                return
        raise AssertionError(f"{wanted!r} was not met among {met}")

    words = load_words("en")
    walk_to(words("chat.tab"))
    page.keyboard.press("ArrowRight")  # tabs are one stop; arrows go along them
    page.keyboard.press("ArrowLeft")
    walk_to("Describe the screen.")
    page.keyboard.press("Enter")
    expect(page.locator("#message .thumbnail-item")).to_have_count(1)
    page.locator("#message textarea").press("Enter")
    expect(bot(visited)).to_contain_text("screen")


def test_clear_forgets_the_conversation(visit: Open, screen_file: Path) -> None:
    visited = visit()
    ask(visited, "Describe the screen.", screen_file)
    expect(bot(visited)).to_contain_text("7 widgets")
    visited.page.get_by_role("button", name="Clear", exact=True).last.click()
    expect(bot(visited)).to_have_count(0)
    ask(visited, "What color is Message?")
    expect(bot(visited)).to_have_count(1)
    expect(visited.page.locator("#talk .user img")).to_have_count(0)


def test_clear_in_the_middle_of_an_answer_forgets_it_too(visit: Open, tmp_path: Path) -> None:
    with served(str(write_smolvlm(tmp_path / "model")), ONSIGHT_UI="on") as running:
        visited = visit(url=running.url)
        ask(visited, "Go on and on.")
        expect(bot(visited).first).not_to_be_empty()
        visited.page.get_by_role("button", name="Clear", exact=True).last.click()
        expect(bot(visited)).to_have_count(0)
        visited.page.wait_for_timeout(1000)
        expect(visited.page.locator("#talk .message")).to_have_count(0)
        visited.leave()


def test_a_message_without_words_is_an_error_in_words(visit: Open) -> None:
    visited = visit("ru-RU")
    ask(visited, " ")
    alert = visited.page.get_by_role("alert").first
    expect(alert).to_have_text(load_words("ru")("mistake.no_question"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_text_is_read_and_kept_as_a_file(visit: Open, screen_file: Path, screen: Screen, language: str) -> None:
    visited, words = visit(LANGUAGES[language]), load_words(language)
    visited.tab(words("ocr.tab"))
    put(visited, screen_file)
    visited.page.click("#ocr-read")
    expect(text_of(visited, "ocr-text")).to_have_value(re.compile("Tomorrow"))
    expect(figures(visited)).to_contain_text(RATE[language])
    with visited.page.expect_download() as kept:
        visited.page.click("#ocr-download")
    assert re.fullmatch(r"ocr_result_\d{8}_\d{6}\.txt", kept.value.suggested_filename)
    read = Path(kept.value.path()).read_text("utf-8")
    assert read == text_of(visited, "ocr-text").input_value()
    assert {"Checkout", "Tomorrow", "Message"} <= set(read.split())


def describe(visited: Visit) -> None:
    visited.page.click("#region-ask")
    expect(text_of(visited, "region-text")).to_have_value(re.compile('cyan button "Tomorrow"'))
    expect(visited.page.locator("#region-crop img")).to_have_count(1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_box_drawn_with_the_mouse_is_described(visit: Open, screen_file: Path, screen: Screen, language: str) -> None:
    visited = visit(LANGUAGES[language])
    visited.tab(load_words(language)("region.tab"))
    attach(visited, "region-picture", screen_file)
    x1, y1, x2, y2 = next(widget.box for widget in screen.widgets if widget.text == "Tomorrow")
    shown = visited.page.locator("#region-picture img").bounding_box()
    width, height = screen.image.size
    scale = min(shown["width"] / width, shown["height"] / height)
    left = shown["x"] + (shown["width"] - width * scale) / 2
    top = shown["y"] + (shown["height"] - height * scale) / 2
    mouse = visited.page.mouse
    mouse.move(left + x1 * scale, top + y1 * scale)
    mouse.down()
    mouse.move(left + x1 * scale + 20, top + y2 * scale, steps=3)
    mouse.move(left + x2 * scale, top + y2 * scale, steps=3)
    mouse.up()
    drawn = [int(part) for part in text_of(visited, "region-box").input_value().split(",")]
    assert all(abs(one - other) <= 2 for one, other in zip(drawn, (x1, y1, x2, y2), strict=True)), drawn
    describe(visited)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_typed_box_is_described_and_each_mistake_is_named(
    visit: Open, screen_file: Path, screen: Screen, language: str
) -> None:
    visited, words = visit(LANGUAGES[language]), load_words(language)
    visited.tab(words("region.tab"))
    attach(visited, "region-picture", screen_file)
    field, alert = text_of(visited, "region-box"), visited.page.locator(".problem:visible [role=alert]")
    width, height = screen.image.size
    for typed, sentence in (
        ("1,2,3", words("mistake.box_count", count=3, text="1,2,3")),
        ("1,2,three,4", words("mistake.box_number", name="x2", part="three")),
        ("30,2,20,40", words("mistake.box_order", name="x", low="30", high="20")),
        ("1,2,3,9999", words("mistake.box_outside", x="3", y="9999", width=width, height=height)),
    ):
        field.fill(typed)
        field.press("Enter")
        expect(alert).to_have_text(sentence)
    box = next(widget.box for widget in screen.widgets if widget.text == "Tomorrow")
    field.fill(", ".join(map(str, box)))
    describe(visited)
    expect(alert).to_have_count(0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_target_is_found_in_the_original_pixels(
    visit: Open, server: Served, screen_file: Path, screen: Screen, language: str
) -> None:
    visited = visit(LANGUAGES[language])
    visited.tab(load_words(language)("locate.tab"))
    attach(visited, "locate-picture", screen_file)
    text_of(visited, "locate-target").fill("Tomorrow")
    visited.page.click("#locate-ask")
    places = text_of(visited, "locate-places")
    expect(places).to_have_value(re.compile(r"^[\d.]+,[\d.]+ \("))
    x, y = map(float, places.input_value().split(" ")[0].split(","))
    left, top, right, bottom = next(widget.box for widget in screen.widgets if widget.text == "Tomorrow")
    assert left <= x <= right
    assert top <= y <= bottom
    expect(visited.page.locator("#locate-drawn img")).to_have_count(1)
    curl = text_of(visited, "locate-curl").input_value()
    assert curl.startswith(f"curl {server.url}/v1/locate -F file=@screen.png")
    asked = httpx.post(
        f"{server.url}/v1/locate", files={"file": screen_file.read_bytes()}, data={"target": "Tomorrow"}, timeout=60
    ).json()
    assert asked["instances"][0]["point"] == pytest.approx({"x": x, "y": y}, abs=0.1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_many_pictures_are_captioned_and_kept(visit: Open, tmp_path: Path, language: str) -> None:
    files = [tmp_path / f"screen {number}.png" for number in range(5)]
    for number, file in enumerate(files):
        draw_screen(7_100_010 + number, EVALUATION_STYLE).image.save(file)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    visited, words = visit(LANGUAGES[language]), load_words(language)
    visited.tab(words("captions.tab"))
    visited.page.set_input_files("#captions-files input[type=file]", [str(file) for file in [*files, broken]])
    expect(visited.page.locator("#captions-files tr.file")).to_have_count(6)
    visited.page.click("#captions-start")
    expect(visited.page.locator("#captions-bar")).to_contain_text(words("captions.progress", done=6, total=6))
    expect(visited.page.locator("#captions-table tbody tr")).to_have_count(6)
    kept = {}
    for name in ("csv", "jsonl"):
        with visited.page.expect_download() as download:
            visited.page.click(f"#captions-{name}")
        assert download.value.suggested_filename.endswith(f".{name}")
        kept[name] = Path(download.value.path()).read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(kept["csv"])))
    lines = [json.loads(line) for line in kept["jsonl"].splitlines()]
    assert [row["file"] for row in rows] == [line["file"] for line in lines]
    assert all("screen" in row["caption"] for row in rows[:5])
    assert rows[5]["error"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_are_ranked_and_show_what_was_found(visit: Open, tmp_path: Path, language: str) -> None:
    pages = [draw_page(FIRST_SEED + number * FAMILY, STYLE) for number in range(4)]
    files = [tmp_path / f"page {number}.png" for number in range(4)]
    for page, file in zip(pages, files, strict=True):
        page.image.save(file)
    book = tmp_path / "book.pdf"
    pages[0].image.save(book, save_all=True, append_images=[page.image for page in pages[1:]])
    asked = next(query for query in queries_about(pages) if query.page == 2)
    visited, words = visit(LANGUAGES[language]), load_words(language)
    visited.tab(words("search.tab"))
    rows = visited.page.locator("#search-table tbody tr")
    for given, first in ((files, "page 2.png"), ([book], words("search.on_page", file="book.pdf", page=3))):
        visited.page.set_input_files("#search-files input[type=file]", [str(file) for file in given])
        expect(visited.page.locator("#search-files tr.file")).to_have_count(len(given))
        text_of(visited, "search-question").fill(asked.text)
        visited.page.click("#search-ask")
        expect(rows).to_have_count(4)
        expect(rows.first).to_contain_text(first)
        expect(visited.page.locator("#search-best img")).to_have_count(4)
        visited.page.locator("#search-files").get_by_label(words("chat.clear"), exact=True).click()


def test_the_example_pages_are_searched_with_two_clicks(visit: Open) -> None:
    visited, words = visit(), load_words("en")
    visited.tab(words("search.tab"))
    visited.page.click("#search-example")
    expect(text_of(visited, "search-question")).to_have_value(words("search.placeholder"))
    visited.page.click("#search-ask")
    expect(visited.page.locator("#search-best img").first).to_be_visible()
    expect(visited.page.locator("#search-table tbody tr").first).to_contain_text("page_3.png")


def test_a_retriever_alone_has_the_search_tab_alone(visit: Open) -> None:
    with served("leaf", ONSIGHT_UI="on") as running:
        visited = visit(url=running.url)
        expect(visited.page.locator("#state")).to_contain_text("leaf")
        expect(visited.page.get_by_role("tab")).to_have_text([load_words("en")("search.tab")])
        visited.leave()


def test_a_video_is_asked_about_twice_and_shows_the_frames_that_were_seen(visit: Open, tmp_path: Path) -> None:
    folder, video = write_smolvlm(tmp_path / "model"), tmp_path / "clip.mp4"
    video.write_bytes(clip(frames=40, rate=10, size=(128, 96)))
    with served(str(folder), ONSIGHT_UI="on") as running:
        visited = visit(url=running.url)
        ask(visited, "What moves?", video)
        expect(visited.page.locator("#talk .user img")).to_have_count(4)
        expect(visited.page.locator("#talk .user")).to_contain_text("4 frames")
        expect(visited.page.locator("#talk small")).to_have_count(1)
        ask(visited, "And where?")
        expect(visited.page.locator("#talk small")).to_have_count(2)
        tasks = [line for line in running.lines if "task=chat" in line]
        assert ["videos=1" in line for line in tasks] == [True, True]
        cached = int(re.search(r"cached=(\d+)", tasks[1])[1])
        assert cached > 0
        visited.leave()


def test_two_visitors_at_once_keep_apart(visit: Open, screen_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "screen.png"
    second = draw_screen(7_100_004, EVALUATION_STYLE)
    second.image.save(other)
    visits = [visit(), visit("ru-RU")]
    for visited, file in zip(visits, (screen_file, other), strict=True):
        visited.tab(load_words("ru" if visited is visits[1] else "en")("ocr.tab"))
        put(visited, file)
    for visited in visits:
        visited.page.click("#ocr-read")
    texts = []
    for visited in visits:
        expect(figures(visited)).not_to_be_empty()
        texts.append(text_of(visited, "ocr-text").input_value())
    assert "Tomorrow" in texts[0]
    assert any(widget.text in texts[1] for widget in second.widgets)
    assert texts[0] != texts[1]


def test_the_file_route_refuses_what_nobody_uploaded(server: Served, visit: Open) -> None:
    visit()
    for language in LANGUAGES:
        for path in ("/etc/passwd", "../../../../etc/passwd", "/proc/self/environ", str(Path(__file__))):
            answer = get(server, f"/ui/{language}/gradio_api/file={path}")
            assert answer.status_code in (403, 404)
            assert "root:" not in answer.text


def test_a_key_is_asked_for_once(visit: Open, screen_file: Path) -> None:
    words = load_words("en")
    with served("--engine", "fake", ONSIGHT_UI="on", ONSIGHT_API_KEY="open sesame") as running:
        visited = visit(url=running.url)
        # A browser notes the 401 of a page that it was not let into; that is the one complaint to expect.
        field = visited.page.get_by_label(words("gate.label"))
        field.fill("wrong")
        field.press("Enter")
        expect(visited.page.get_by_role("alert")).to_have_text(words("gate.wrong"))
        visited.page.get_by_label(words("gate.label")).fill("open sesame")
        visited.page.get_by_role("button").click()
        ask(visited, "hello")
        expect(bot(visited)).to_contain_text("fake engine: hello")
        visited.leave()
        visited.complaints[:] = [complaint for complaint in visited.complaints if "401" not in complaint]


def test_stop_and_a_closed_tab_free_the_place(visit: Open) -> None:
    def taken(running: Served) -> float:
        found = re.search(r"^onsight_num_requests_running\S* (\S+)", get(running, "/metrics").text, re.MULTILINE)
        return float(found[1])

    with served("peek", ONSIGHT_UI="on") as running:
        for end in ("stop", "close"):
            visited = visit(url=running.url)
            visited.page.get_by_role("button", name="Settings").click()
            ask(visited, "Describe the screen. " * 20)
            visited.page.wait_for_timeout(100)
            if end == "stop":
                visited.page.get_by_role("button", name="Stop", exact=True).first.click()
            else:
                visited.leave()
            wait_until(lambda: taken(running) == 0)
            visited.leave()


SHOTS = Path(__file__).parents[2] / "docs" / "images" / "page"
LOOKS = [(dark, phone) for dark in (False, True) for phone in (False, True)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("dark", "phone"), LOOKS)
def test_every_tab_is_photographed(
    visit: Open, screen_file: Path, screen: Screen, language: str, dark: bool, phone: bool
) -> None:
    visited, words = visit(LANGUAGES[language], dark=dark, phone=phone), load_words(language)
    look = f"{language}_{'dark' if dark else 'light'}_{'phone' if phone else 'wide'}"
    for tab, fill in zip(TABS, (_chat, _ocr, _region, _locate, _search, _many), strict=True):
        if tab != "chat":
            _open_tab(visited, words(f"{tab}.tab"))
        fill(visited, words, screen_file, screen)
        _photograph(visited, SHOTS / f"{tab}_{look}.png")
        wide = visited.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{tab} is {wide} px wider than the window"


def _open_tab(visited: Visit, name: str) -> None:
    """On a phone some tabs are behind a button."""
    tab = visited.page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        visited.page.locator(".overflow-menu > button").click()
        tab = visited.page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def _chat(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    ask(visited, "Describe the screen.", file)
    expect(visited.page.locator("#talk small")).to_have_count(1)


def _ocr(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    put(visited, file)
    visited.page.click("#ocr-read")
    expect(figures(visited)).not_to_be_empty()


def _region(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    attach(visited, "region-picture", file)
    text_of(visited, "region-box").fill(",".join(map(str, screen.widgets[4].box)))
    describe(visited)


def _locate(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    attach(visited, "locate-picture", file)
    text_of(visited, "locate-target").fill("Tomorrow")
    visited.page.click("#locate-ask")
    expect(visited.page.locator("#locate-drawn img")).to_have_count(1)


def _search(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    visited.page.click("#search-example")
    expect(visited.page.locator("#search-files tr.file")).to_have_count(4)
    visited.page.click("#search-ask")
    expect(visited.page.locator("#search-best img")).to_have_count(4)


def _many(visited: Visit, words: Words, file: Path, screen: Screen) -> None:
    visited.page.set_input_files("#captions-files input[type=file]", [str(file)])
    expect(visited.page.locator("#captions-files tr.file")).to_have_count(1)
    visited.page.click("#captions-start")
    expect(visited.page.locator("#captions-bar")).to_contain_text(words("captions.progress", done=1, total=1))


def _photograph(visited: Visit, path: Path) -> None:
    """A screenshot as a PNG of few colours, which is small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    visited.page.evaluate("window.scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(visited.page.screenshot(animations="disabled", full_page=True))).convert("RGB")
    shot.quantize(96, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
