"""PDFs in /v1/ocr, /v1/caption and chat: each page answered for, the pages that were asked for, every mistake named."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from onsight.core.geometry import Point
from onsight.core.messages import Image, Text
from onsight.media.limits import MediaLimits
from onsight.models.card import cards
from tests.api.conftest import Bench, events, user
from tests.api.finder import Finder
from tests.api.test_tasks import image_of, square
from tests.media.papers import BLUE, GREEN, RED, encrypted, fill, page, paper, pdf
from tests.media.pictures import data_url, pixel, plain

Build = Callable[..., Bench]

CARDS = {card.name: card for card in cards()}
SPOT = (255, 0, 255)


def spotted(*heights: float) -> bytes:
    """A page of 100x100 points for each number: a spot of 10x10 points whose lower edge is so high."""
    return pdf([page(fill(SPOT, (20, height, 10, 10)), 100, 100) for height in heights])


def places(start: Point, stop: Point) -> str:
    return f"\n at {round(start.y)} \n"


@pytest.fixture
def peek(build: Build) -> tuple[Bench, Finder]:
    finder = Finder("0..1000", square, places)
    return build(engine=finder, card=CARDS["peek"]), finder


def shown(finder: Finder) -> list[int | None]:
    """The pages that the model saw, one a request."""
    return [image.page for request in finder.asked for image in request.messages[-1].images]


@pytest.mark.parametrize("path", ["/v1/ocr", "/v1/caption"])
async def test_each_page_has_its_own_answer_and_all_have_one(peek: tuple[Bench, Finder], path: str) -> None:
    bench, finder = peek
    body = (await bench.post(path, {"image": image_of(spotted(90, 40, 0))})).json()
    assert body["pages"] == [
        {"page": number, "text": text, "finish_reason": "stop"}
        for number, text in ((1, "at 0"), (2, "at 500"), (3, "at 900"))
    ]
    assert body["text"] == "at 0\n\nat 500\n\nat 900"
    assert body["usage"]["prompt_tokens"] == 30
    assert sorted(filter(None, shown(finder))) == [1, 2, 3]
    assert len(set(finder.texts)) == 1
    (record,) = bench.records
    assert (record.images, record.prompt_tokens, record.completion_tokens) == (
        3,
        30,
        body["usage"]["completion_tokens"],
    )


async def test_a_form_and_json_take_the_pages_that_were_asked_for_in_their_order(peek: tuple[Bench, Finder]) -> None:
    bench, _ = peek
    data = spotted(90, 40, 0)
    asked = (await bench.post("/v1/ocr", {"image": data_url(data, "application/pdf"), "pages": "3,1-2"})).json()
    async with bench.client() as client:
        form = await client.post("/v1/ocr", files={"file": ("a.pdf", data)}, data={"pages": "3,1-2"})
    assert [one["page"] for one in asked["pages"]] == [3, 1, 2]
    assert form.json() == asked


async def test_a_pictures_answer_speaks_of_no_pages(peek: tuple[Bench, Finder]) -> None:
    body = (await peek[0].post("/v1/ocr", {"image": image_of(plain())})).json()
    assert "pages" not in body
    assert "lines" not in body


@pytest.mark.parametrize("count", [1, 6])
async def test_a_streamed_answer_goes_page_by_page_and_says_the_same(peek: tuple[Bench, Finder], count: int) -> None:
    bench, _ = peek
    asked = {"image": image_of(spotted(*(15.0 * number for number in range(count))))}
    plain_answer = (await bench.post("/v1/ocr", asked)).json()
    *pieces, last, done = events(await bench.post("/v1/ocr", {**asked, "stream": True}))
    assert done == "[DONE]"
    assert "".join(piece["text"] for piece in pieces) == plain_answer["text"]  # type: ignore[index]
    told: dict[int, str] = {}
    for piece in pieces:
        assert isinstance(piece, dict)
        if "page" in piece:
            told[piece["page"]] = told.get(piece["page"], "") + piece["text"]  # type: ignore[index, operator]
    assert list(told.items()) == [(one["page"], one["text"]) for one in plain_answer["pages"]]
    ends = [piece["page"] for piece in pieces if "finish_reason" in piece]  # type: ignore[index]
    assert ends == list(range(1, count + 1))
    assert last == {"model": "fake", "text": "", "finish_reason": "stop", "usage": plain_answer["usage"]}


async def test_a_refused_page_is_a_400_before_the_stream_begins(build: Build) -> None:
    bench = build(card=CARDS["peek"])
    answer = await bench.post("/v1/ocr", {"image": image_of(encrypted(b"x")), "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert bench.admission.taken == 0


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"image": encrypted(b"x")}, "image", "encrypted"),
        ({"image": paper()[:300]}, "image", "damaged"),
        ({"image": paper([RED] * 10_000)}, "image", "10000 pages"),
        ({"image": pdf([])}, "image", "no pages"),
        ({"image": paper(), "pages": "4"}, "pages", "the PDF has 3"),
        ({"image": paper(), "pages": "0"}, "pages", "no page 0"),
        ({"image": paper(), "pages": "2-1"}, "pages", "backwards"),
        ({"image": paper(), "pages": "1-3,2"}, "pages", "twice"),
        ({"image": paper(), "pages": "all"}, "pages", "is no page"),
        ({"image": paper(), "pages": 1}, "pages", "it should be a text"),
        ({"image": plain(), "pages": "1"}, "pages", "this is a picture"),
        ({"image": paper(), "lines": True, "stream": True}, "stream", "lines are answered whole"),
    ],
)  # fmt: skip
async def test_a_mistake_is_a_400_that_names_its_field(
    peek: tuple[Bench, Finder], fields: dict[str, object], param: str, why: str
) -> None:
    bench, finder = peek
    data = fields["image"]
    assert isinstance(data, bytes)
    answer = await bench.post("/v1/ocr", {**fields, "image": image_of(data)})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]
    if fields.get("pages") != 1:
        async with bench.client() as client:
            words = {name: str(value).lower() for name, value in fields.items() if name != "image"}
            form = await client.post("/v1/ocr", files={"file": data}, data=words)
        assert (form.status_code, form.json()["error"]["param"]) == (400, param.replace("image", "file"))
    assert finder.asked == []


@pytest.mark.parametrize(("path", "more"), [("locate", {"target": "x"}), ("describe", {"box": [1, 2, 3, 4]})])
async def test_tasks_on_places_take_no_pdf(peek: tuple[Bench, Finder], path: str, more: dict[str, object]) -> None:
    answer = await peek[0].post(f"/v1/{path}", {"image": image_of(paper()), **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert "this is a PDF" in answer.json()["error"]["message"]
    answer = await peek[0].post(f"/v1/{path}", {"image": image_of(plain()), "pages": "1", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "pages")


def part(kind: str, data: bytes, **more: object) -> dict[str, object]:
    """A chat part with a PDF, in each form that clients know."""
    match kind:
        case "file":
            inner: object = {"file_data": data_url(data, "application/pdf"), "filename": "a.pdf", **more}
        case "image":
            inner = {"b64": base64.b64encode(data).decode(), **more}
        case _:
            inner = {"url": data_url(data, "application/pdf"), **more}
    return {"type": kind, kind: inner}


@pytest.mark.parametrize("kind", ["file", "image_url", "image"])
async def test_a_pdf_in_a_conversation_becomes_its_pages_in_order(peek: tuple[Bench, Finder], kind: str) -> None:
    bench, finder = peek
    turn = user(part("image_url", plain()), part(kind, paper()), {"type": "text", "text": "what?"})
    assert (await bench.chat(messages=turn)).status_code == 200
    (request,) = finder.asked
    *images, last = request.messages[0].parts
    assert last == Text("what?")
    seen = [(one.page, pixel(one, 0, 0)) for one in images if isinstance(one, Image)]
    assert seen == [(None, RED), (1, RED), (2, GREEN), (3, BLUE)]
    if kind != "image":
        assert (await bench.chat(messages=user(part(kind, paper(), pages="2")))).status_code == 200
        assert [one.page for one in finder.asked[1].messages[0].images] == [2]


@pytest.mark.parametrize(
    ("one", "more", "param"),
    [
        (part("file", paper(), pages="9"), {}, "messages.0.content.0.file.pages"),
        (part("file", paper(), pages="x"), {}, "messages.0.content.0.file.pages"),
        (part("image_url", paper(), pages="9"), {}, "messages.0.content.0.image_url.pages"),
        (part("image_url", encrypted(b"x")), {}, "messages.0.content.0.image_url"),
        (part("file", encrypted(b"x")), {}, "messages.0.content.0.file.file_data"),
        (part("file", paper([RED] * 33)), {}, "messages.0.content.0.file.file_data"),
        (part("file", paper(), file_id="file-1"), {}, "messages.0.content.0.file.file_id"),
        ({"type": "file", "file": {"filename": "a.pdf"}}, {}, "messages.0.content.0.file.file_data"),
        (part("image_url", paper()), {"coordinates": "original"}, "messages.0.content.0.image_url"),
        (part("image_url", plain(), pages="1"), {"coordinates": "original"}, "coordinates"),
    ],
)  # fmt: skip
async def test_what_a_conversation_cannot_show_is_a_400_that_names_its_part(
    peek: tuple[Bench, Finder], one: dict[str, object], more: dict[str, object], param: str
) -> None:
    bench, finder = peek
    answer = await bench.chat(messages=user(one), **more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert finder.asked == []


async def test_lines_come_as_a_list_without_boxes_that_nobody_gave(build: Build) -> None:
    finder = Finder("0..1000", square, lambda start, stop: " one \n\n two\n")
    bench = build(engine=finder, card=CARDS["peek"])
    body = (await bench.post("/v1/ocr", {"image": image_of(plain()), "lines": True})).json()
    assert (body["text"], body["lines"]) == ("one\ntwo", [{"text": "one"}, {"text": "two"}])
    body = (await bench.post("/v1/ocr", {"image": image_of(paper([RED, BLUE])), "lines": True})).json()
    assert [one["lines"] for one in body["pages"]] == [[{"text": "one"}, {"text": "two"}]] * 2
    assert body["lines"] == [{"text": "one"}, {"text": "two"}] * 2


def boxed(start: Point, stop: Point) -> str:
    corners = f"{round(start.x)}, {round(start.y)}, {round(stop.x)}, {round(stop.y)}"
    return f'[{{"bbox_2d": [{corners}], "text_content": "a \\"bbox_2d\\": [1, 2]"}}]'


async def test_lines_have_their_boxes_in_the_originals_pixels_where_the_model_gives_them(build: Build) -> None:
    finder = Finder("resized_pixels", lambda size: size.__class__(size.width * 2, size.height * 4), boxed)
    bench = build(engine=finder, card=CARDS["qwen2_5_vl"])
    body = (await bench.post("/v1/ocr", {"image": image_of(spotted(40)), "lines": True})).json()
    (line,) = body["lines"]
    assert line["text"] == body["text"] == 'a "bbox_2d": [1, 2]'
    assert line["box"] == {"x1": 50, "y1": 125, "x2": 75, "y2": 150}
    assert line["box_relative"] == {"x1": 0.2, "y1": 0.5, "x2": 0.3, "y2": 0.6}
    assert finder.texts == ["Spotting all the text in the image with line-level, and output in JSON format."]
    assert finder.asked[0].schema is not None
    plain_text = await bench.post("/v1/ocr", {"image": image_of(spotted(40))})
    assert plain_text.json()["text"].startswith("[{")
    assert finder.asked[1].schema is None


@pytest.mark.parametrize(
    "said",
    [
        '[{"bbox_2d": [1, 2, 30000, 40], "text_content": "x"}]',
        '[{"bbox_2d": [1, 2, 3], "text_content": "x"}]',
        f'[{{"bbox_2d": [1, 2, {"9" * 400}, 4], "text_content": "x"}}]',
        '[{"bbox_2d": [1, 2, NaN, 4], "text_content": "x"}]',
        '[{"text_content": "x"}]',
        '{"lines": []}',
        "x" * 9,
        "[" * 9000,
    ],
)
async def test_lines_outside_the_picture_or_of_no_form_are_an_unreadable_answer(build: Build, said: str) -> None:
    """What a server in front of which we stand makes of a schema is its own."""
    bench = build(engine=Finder("resized_pixels", square, lambda *_: said), card=CARDS["qwen2_5_vl"])
    answer = await bench.post("/v1/ocr", {"image": image_of(plain()), "lines": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unreadable_answer")
    assert answer.json()["error"]["answer"] == said


@pytest.mark.parametrize(
    ("card", "asked", "bounds"),
    [
        ("holo1_5", {}, (None, 8_294_400)),
        ("qwen2_5_vl", {}, (None, 8_294_400)),
        ("holo1_5", {"max_pixels": 602_112}, (None, 602_112)),
        ("holo1_5", {"min_pixels": 9000}, (9000, 8_294_400)),
        ("holo1_5", {"min_pixels": 9_000_000}, (9_000_000, None)),
        ("peek", {}, (None, None)),
    ],
)
async def test_chat_looks_under_the_cards_budget_where_the_request_says_nothing(
    build: Build, card: str, asked: dict[str, object], bounds: tuple[int | None, int | None]
) -> None:
    finder = Finder("0..1000", square, places)
    bench = build(engine=finder, card=CARDS[card])
    await bench.chat(messages=user(part("image_url", plain(), **asked)))
    (image,) = finder.asked[0].messages[0].images
    assert (image.options.min_pixels, image.options.max_pixels) == bounds


async def test_a_cards_budget_gives_way_to_what_the_server_lets_in(build: Build) -> None:
    finder = Finder("0..1000", square, places)
    bench = build(engine=finder, card=CARDS["qwen2_5_vl"])
    bench.door.limits = MediaLimits(max_pixels=1_000_000)
    answer = await bench.chat(messages=user(part("image_url", plain())))
    assert answer.status_code == 200, answer.text
    assert finder.asked[0].messages[0].images[0].options.max_pixels == 1_000_000


async def test_responses_take_files_and_their_pages(peek: tuple[Bench, Finder]) -> None:
    bench, finder = peek
    data = data_url(paper(), "application/pdf")
    for part_of_it in (
        {"type": "input_file", "file_data": data, "filename": "a.pdf", "pages": "3,1"},
        {"type": "input_image", "image_url": data, "pages": "3,1"},
    ):
        turn = {"input": [{"role": "user", "content": [part_of_it]}]}
        assert (await bench.post("/v1/responses", turn)).status_code == 200
    assert shown(finder) == [3, 1, 3, 1]
    for one, param in (
        ({"type": "input_file", "file_data": data, "pages": "4"}, "pages"),
        ({"type": "input_file", "file_data": data_url(encrypted(b"x"))}, "file_data"),
        ({"type": "input_file", "file_url": "ftp://x/y.pdf"}, "file_url"),
    ):
        answer = await bench.post("/v1/responses", {"input": [{"role": "user", "content": [one]}]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"input.0.content.0.{param}")
