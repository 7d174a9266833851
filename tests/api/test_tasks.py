"""/v1/caption, /v1/ocr, /v1/locate and /v1/describe, and chat's mapped coordinates: whole requests over HTTP."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

from onsight.core.geometry import Box, Point, Size
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.qwen_images import resized
from onsight.models.card import ModelCard, Prompt, cards
from tests.api.conftest import Bench, events, user
from tests.api.finder import SPOT, Finder, Words, find_spot, middle
from tests.media.pictures import data_url, encoded
from tests.tasks.targets import TARGETS

Build = Callable[..., Bench]

CARDS = {card.name: card for card in cards()}
SHARES = ModelCard(
    "shares", "Shares", "fake", "Apache-2.0", "Answers in shares of 1.", ("chat", "locate", "describe"),
    convention="0..1",
    prompts={"locate": Prompt("{target}?", "pair"), "describe": Prompt("in ({x1}, {y1}, {x2}, {y2})?")},
)  # fmt: skip

STORED_AS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation -> Pillow's transpose that makes the stored picture out of the upright one."""


def spotted(size: Size, spot: Box, orientation: int = 1) -> bytes:
    """A PNG, white but for the spot (whole px of the upright picture), stored as the orientation says."""
    picture = Pillow.new("RGB", (size.width, size.height), "white")
    picture.paste(SPOT, (int(spot.x1), int(spot.y1), int(spot.x2), int(spot.y2)))
    if orientation > 1:
        picture = picture.transpose(Pillow.Transpose(STORED_AS[orientation]))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return encoded(picture, "PNG", exif=exif, compress_level=1)


def seen_by_qwen(size: Size) -> Size:
    return Size(*resized(size.width, size.height, 28, 3136, 1_003_520))


def square(size: Size) -> Size:
    return Size(256, 256)


def pair(start: Point, stop: Point) -> str:
    point = middle(start, stop)
    return f"({round(point.x)}, {round(point.y)})"


def shares(start: Point, stop: Point) -> str:
    point = middle(start, stop)
    return f"({point.x:.3f}, {point.y:.3f})"


def click(start: Point, stop: Point) -> str:
    point = middle(start, stop)
    return f'{{"action": "click_absolute", "x": {round(point.x)}, "y": {round(point.y)}}}'


def boxes(start: Point, stop: Point) -> str:
    return f'[{{"bbox_2d": [{round(start.x)}, {round(start.y)}, {round(stop.x)}, {round(stop.y)}]}}]'


def found(build: Build, card: ModelCard, words: Words) -> tuple[Bench, Finder]:
    assert card.convention is not None
    resize = seen_by_qwen if card.convention == "resized_pixels" else square
    finder = Finder(card.convention, resize, words)
    return build(engine=finder, card=card), finder


def image_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def place(size: Size, chance: random.Random) -> Box:
    """A spot somewhere in the picture."""
    width, height = (min(side, chance.randint(1, 9)) for side in (size.width, size.height))
    x, y = chance.randint(0, size.width - width), chance.randint(0, size.height - height)
    return Box(x, y, x + width, y + height)


@pytest.mark.parametrize(
    ("card", "words", "unit"), [(CARDS["peek"], pair, 1), (CARDS["holo1_5"], click, 1), (SHARES, shares, 0.001)]
)
async def test_a_spot_comes_back_within_half_a_unit_upright_whatever_the_size_and_orientation(
    build: Build, card: ModelCard, words: Words, unit: float
) -> None:
    bench, _ = found(build, card, words)
    chance = random.Random(11)
    sizes = [
        Size(30, 30),
        Size(30, 4500),
        Size(4500, 30),
        Size(1920, 1080),
        Size(1337, 91),
        Size(61, 777),
        Size(2500, 33),
    ]
    for number in range(24):
        size = sizes[number] if number < len(sizes) else Size(chance.randint(30, 900), chance.randint(30, 900))
        spot, orientation = place(size, chance), number % 8 + 1
        answer = await bench.post(
            "/v1/locate", {"image": image_of(spotted(size, spot, orientation)), "target": "the spot"}
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        (instance,) = body["instances"]
        seen = Size(**body["seen"])
        spans = {"resized_pixels": seen, "0..1000": Size(1000, 1000), "0..1": Size(1, 1)}[str(card.convention)]
        assert body["original"] == {"width": size.width, "height": size.height}
        assert abs(instance["point"]["x"] - spot.centre.x) <= 0.5 * unit * size.width / spans.width + 1e-6
        assert abs(instance["point"]["y"] - spot.centre.y) <= 0.5 * unit * size.height / spans.height + 1e-6
        assert instance["point_relative"]["x"] == pytest.approx(instance["point"]["x"] / size.width)
        assert instance["point_relative"]["y"] == pytest.approx(instance["point"]["y"] / size.height)


async def test_a_box_comes_back_with_its_centre_and_the_models_own_words(build: Build) -> None:
    bench, finder = found(build, CARDS["qwen2_5_vl"], boxes)
    size, spot = Size(1920, 1080), Box(300, 200, 700, 300)
    asked = {"image": data_url(spotted(size, spot)), "target": 'a "{x1}" thing', "shape": "box"}
    body = (await bench.post("/v1/locate", asked)).json()
    (instance,) = body["instances"]
    assert body["seen"] == {"width": 1316, "height": 728}
    assert body["convention"] == "resized_pixels"
    assert body["raw"].startswith('[{"bbox_2d": [206, 135,')
    for name, value in {"x1": 300, "y1": 200, "x2": 700, "y2": 300}.items():
        assert instance["box"][name] == pytest.approx(value, abs=0.75)
        assert instance["box_relative"][name] == pytest.approx(value / (1920 if "x" in name else 1080), abs=0.001)
    assert instance["point"]["x"] == pytest.approx((instance["box"]["x1"] + instance["box"]["x2"]) / 2)
    assert instance["confidence"] == pytest.approx(2.718281828 ** (-0.1 * 12), abs=1e-3)
    assert 'a "{x1}" thing' in finder.texts[0]


async def test_the_answer_is_the_likeliest_held_to_the_cards_schema_under_the_tasks_budget(build: Build) -> None:
    bench, finder = found(build, CARDS["holo1_5"], click)
    await bench.post("/v1/locate", {"image": data_url(spotted(Size(90, 60), Box(5, 5, 9, 9))), "target": "x"})
    (request,) = finder.asked
    (image,) = request.messages[0].images
    prompt = CARDS["holo1_5"].prompt("locate")
    assert prompt is not None
    assert request.schema == prompt.schema
    assert (request.sampling.temperature, request.sampling.logprobs) == (0, True)
    assert image.options.max_pixels == 1_003_520
    assert request.messages[0].parts[0] is image
    assert bench.records[0].task == "locate"


async def test_an_unreadable_answer_is_an_error_with_the_models_words(build: Build) -> None:
    bench, _ = found(build, CARDS["peek"], lambda start, stop: "a red button")
    answer = await bench.post("/v1/locate", {"image": data_url(spotted(Size(90, 60), Box(5, 5, 9, 9))), "target": "x"})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert (error["code"], error["type"], error["answer"]) == ("unreadable_answer", "model_error", "a red button")


async def test_targets_of_every_script_pass_through_json_and_forms(build: Build) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    picture = spotted(Size(90, 60), Box(5, 5, 9, 9))
    for _, target in TARGETS:
        assert (await bench.post("/v1/locate", {"image": image_of(picture), "target": target})).status_code == 200
        async with bench.client() as client:
            form = await client.post("/v1/locate", files={"file": picture}, data={"target": target})
        assert form.status_code == 200, form.text
        assert finder.texts[-2:] == [f"Where is {target}?"] * 2


async def test_a_form_with_a_file_is_the_same_request_as_json(build: Build) -> None:
    bench, finder = found(build, CARDS["qwen2_5_vl"], boxes)
    picture = spotted(Size(400, 300), Box(50, 60, 80, 90), 6)
    fields = {"target": "x", "shape": "box", "all": "true", "max_pixels": "602112", "max_tokens": "99"}
    async with bench.client() as client:
        form = await client.post("/v1/locate", files={"file": ("é.png", picture, "image/png")}, data=fields)
    asked = {
        "image": image_of(picture),
        "target": "x",
        "shape": "box",
        "all": True,
        "max_pixels": 602112,
        "max_tokens": 99,
    }
    assert form.status_code == 200, form.text
    assert form.json() == (await bench.post("/v1/locate", asked)).json()
    assert (await bench.post("/v1/locate", {**asked, "image": data_url(picture)})).json() == form.json()
    options = [request.messages[0].images[0].options.max_pixels for request in finder.asked]
    assert [request.sampling.max_tokens for request in finder.asked] == [99] * 3
    assert options == [602_112] * 3


@pytest.mark.parametrize(
    ("path", "more", "question"),
    [
        ("/v1/caption", {}, "Describe the screen."),
        ("/v1/ocr", {}, "Read the screen."),
        ("/v1/describe", {"box": [20, 15, 40, 60]}, "What is in the box (100, 150, 200, 600)?"),
    ],
)
async def test_texts_come_plain_and_streamed_with_the_same_words(
    build: Build, path: str, more: dict[str, object], question: str
) -> None:
    bench, finder = found(build, CARDS["peek"], lambda start, stop: " \n a  red\n button \n")
    asked = {"image": data_url(spotted(Size(200, 100), Box(5, 5, 9, 9))), **more}
    body = (await bench.post(path, asked)).json()
    assert body["text"] == "a  red\n button"
    assert (body["model"], body["finish_reason"]) == ("fake", "stop")
    streamed = await bench.post(path, {**asked, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *pieces, last, done = events(streamed)
    assert done == "[DONE]"
    assert "".join(piece["text"] for piece in pieces) == body["text"]  # type: ignore[index]
    assert last == {"model": "fake", "text": "", "finish_reason": "stop", "usage": body["usage"]}
    assert finder.texts == [question, question]


async def test_shares_of_one_are_written_with_three_decimals(build: Build) -> None:
    bench, finder = found(build, SHARES, shares)
    await bench.post(
        "/v1/describe", {"image": image_of(spotted(Size(300, 100), Box(5, 5, 9, 9))), "box": [0, 1, 100, 50]}
    )
    assert finder.texts == ["in (0.000, 0.010, 0.333, 0.500)?"]


async def test_a_model_that_knows_no_boxes_is_shown_the_box_alone_upright_with_a_margin(build: Build) -> None:
    bench, finder = found(build, CARDS["holo1_5"], lambda start, stop: "a spot")
    picture = spotted(Size(500, 300), Box(200, 100, 300, 150), 6)
    body = (await bench.post("/v1/describe", {"image": image_of(picture), "box": [200, 100, 300, 150]})).json()
    assert body["text"] == "a spot"
    ((image,),) = [request.messages[0].images for request in finder.asked]
    assert isinstance(image, Image)
    assert image.size == Size(120, 60)
    assert find_spot(image) == Box(10, 5, 110, 55)
    assert image.options.max_pixels == 8_294_400
    assert finder.texts == ["Describe this image."]


PICTURE = image_of(spotted(Size(100, 80), Box(5, 5, 9, 9)))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/describe", {"box": [10, 10, 101, 20]}, "box"),
        ("/v1/describe", {"box": [200, 10, 210, 20]}, "box"),
        ("/v1/describe", {"box": [20, 10, 20, 20]}, "box"),
        ("/v1/describe", {"box": [20, 10, 10, 20]}, "box"),
        ("/v1/describe", {"box": [20, 30, 40, 20]}, "box"),
        ("/v1/describe", {"box": [1, 2, 3]}, "box"),
        ("/v1/describe", {"box": [1, 2, 3, 4, 5]}, "box"),
        ("/v1/describe", {"box": [-1, 2, 3, 4]}, "box"),
        ("/v1/describe", {"box": [1, 2, 3, "four"]}, "box"),
        ("/v1/describe", {"box": [1, 2, 3, True]}, "box"),
        ("/v1/describe", {"box": [1, 2, 3, 10**400]}, "box"),
        ("/v1/describe", {"box": {"x1": 1}}, "box"),
        ("/v1/describe", {}, "box"),
        ("/v1/locate", {"target": ""}, "target"),
        ("/v1/locate", {"target": " \n"}, "target"),
        ("/v1/locate", {"target": 5}, "target"),
        ("/v1/locate", {}, "target"),
        ("/v1/locate", {"target": "x", "stream": True}, "stream"),
        ("/v1/locate", {"target": "x", "shape": "box"}, "shape"),
        ("/v1/locate", {"target": "x", "all": True}, "all"),
        ("/v1/locate", {"target": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/caption", {"length": "short"}, "length"),
        ("/v1/caption", {"length": "huge"}, "length"),
        ("/v1/caption", {"min_pixels": 9, "max_pixels": 8}, "min_pixels"),
        ("/v1/caption", {"min_pixels": 200_000_000_000}, "min_pixels"),
        ("/v1/locate", {"target": "x", "max_pixels": 40_000_001}, "max_pixels"),
        ("/v1/caption", {"temperature": 1}, "temperature"),
        ("/v1/ocr", {"image": ""}, "image"),
        ("/v1/ocr", {"image": "no picture"}, "image"),
        ("/v1/ocr", {"image": "ftp://x/y.png"}, "image"),
        ("/v1/ocr", {"image": {"url": "x"}}, "image"),
        ("/v1/ocr", {"image": None}, "image"),
    ],
)  # fmt: skip
async def test_bad_input_is_a_400_that_names_the_field(
    build: Build, path: str, fields: dict[str, object], param: str
) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    answer = await bench.post(path, {"image": PICTURE, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert finder.asked == []


@pytest.mark.parametrize("box", ["NaN", "Infinity", "1e999"])
async def test_a_box_of_no_numbers_is_a_400(build: Build, box: str) -> None:
    bench, _ = found(build, CARDS["peek"], pair)
    body = f'{{"image": "{PICTURE}", "box": [1, 2, 3, {box}]}}'
    async with bench.client() as client:
        answer = await client.post("/v1/describe", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "box")


@pytest.mark.parametrize("box", ["1,2,3", "1,2,3,nan", "-1,2,3,4", "5,2,3,4", "1,2,3,2", "0,0,101,9", "1 2 3 4", ""])
async def test_a_wrong_box_in_a_form_is_a_400_that_names_it(build: Build, box: str) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    async with bench.client() as client:
        answer = await client.post("/v1/describe", files={"file": base64.b64decode(PICTURE)}, data={"box": box})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "box")
    assert finder.asked == []


Parts = list[tuple[str, Any]]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("image", ("a.png", b"x"))], "image"),
        ([("picture", ("a.png", b"x"))], "picture"),
        ([("target", (None, "x"))], "file"),
        ([("file", ("a.png", b"x")), ("image", (None, "x")), ("target", (None, "x"))], "image"),
        ([("file", ("a.png", b"x")), ("file", ("b.png", b"x"))], "file"),
        ([("file", ("a.png", b"x")), ("target", (None, "x")), ("target", (None, "y"))], "target"),
        ([("file", ("a.png", b"x")), ("target", (None, "x")), ("colour", (None, "red"))], "colour"),
        ([("file", ("a.png", b"x")), ("target", (None, "x")), ("all", (None, "perhaps"))], "all"),
        ([("file", ("a.png", b"x")), ("target", (None, ""))], "target"),
        ([("file", ("a.png", b"no picture")), ("target", (None, "x"))], "file"),
        ([("file", ("a.png", b"x")), ("target", (None, b"\xff"))], "target"),
        ([("file", ("a.png", b"x")), ("target", (None, "x" * 70_000))], "target"),
    ],
)
async def test_a_wrong_form_is_a_400_that_names_the_field(build: Build, parts: Parts, param: str) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    async with bench.client() as client:
        answer = await client.post("/v1/locate", files=parts)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert finder.asked == []


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"--b\r\n\r\n", 415),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"nonsense", 400),
        ("multipart/form-data; boundary=" + "b" * 257, b"nonsense", 400),
        ('multipart/form-data; boundary=""', b"nonsense", 415),
        ('multipart/form-data; boundary="', b"nonsense", 400),
        ("multipart/form-data; boundary=\xe9; charset=nonsense", b"nonsense", 400),
        ("application/json; charset=nonsense", b"[]", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc', 400),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: text/plain\r\n\r\nabc\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nX-A: b\r\n" + b"X-B: c\r\n" * 50, 400),
        ("text/plain", b"abc", 415),
        ("application/json", b"[]", 400),
    ],
)
async def test_a_broken_body_is_refused(build: Build, kind: str, body: bytes, status: int) -> None:
    bench, _ = found(build, CARDS["peek"], pair)
    async with bench.client() as client:
        answer = await client.post("/v1/ocr", content=body, headers={"content-type": kind.encode("latin-1")})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_a_form_that_was_cut_is_refused_even_where_its_picture_came_whole(build: Build) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    picture = spotted(Size(90, 60), Box(5, 5, 9, 9))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    whole = head + picture + b"\r\n--b--\r\n"
    cut = head + picture + b"\r\n--b\r\nContent-Dispo"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    async with bench.client() as client:
        assert (await client.post("/v1/ocr", content=whole, headers=kind)).status_code == 200
        refused = await client.post("/v1/ocr", content=cut, headers=kind)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_multipart")
    assert len(finder.asked) == 1


async def test_a_task_that_the_card_lacks_is_unsupported(bench: Bench) -> None:
    for path, more in (("caption", {}), ("ocr", {}), ("locate", {"target": "x"}), ("describe", {"box": [1, 2, 3, 4]})):
        answer = await bench.post(f"/v1/{path}", {"image": PICTURE, **more})
        assert answer.status_code == 400
        assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("unsupported", "model")
    assert bench.door.asked == []


async def test_a_full_queue_is_told_before_the_picture_is_opened(build: Build) -> None:
    bench = build(card=CARDS["peek"], places=1)
    with bench.admission.place():
        answer = await bench.post("/v1/ocr", {"image": PICTURE})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert bench.door.asked == []
    assert (await bench.post("/v1/ocr", {"image": PICTURE})).status_code == 200
    assert bench.admission.taken == 0


async def test_chat_answers_in_the_originals_pixels_when_asked_to(build: Build) -> None:
    bench, _ = found(build, CARDS["peek"], lambda start, stop: f"It is at {pair(start, stop)}, see (1) and [2, 3].")
    turn = user(
        {"type": "image_url", "image_url": {"url": data_url(spotted(Size(640, 200), Box(100, 50, 200, 150), 8))}}
    )
    said = (await bench.chat(messages=turn)).json()["choices"][0]["message"]["content"]
    mapped = (await bench.chat(messages=turn, coordinates="original", n=2)).json()["choices"]
    assert said == "It is at (234, 500), see (1) and [2, 3]."
    assert [choice["message"]["content"] for choice in mapped] == ["It is at (150, 100), see (1) and [2, 3]."] * 2


async def test_chat_refuses_by_name_what_it_could_not_map(build: Build) -> None:
    bench, finder = found(build, CARDS["peek"], pair)
    url = {"type": "image_url", "image_url": {"url": data_url(spotted(Size(64, 20), Box(1, 2, 3, 4)))}}
    asked: list[dict[str, object]] = [
        {"messages": user(url), "stream": True},
        {"messages": user(url), "logprobs": True},
        {"messages": user(url), "tools": [{"type": "function", "function": {"name": "click"}}]},
        {"messages": user(url, url)},
        {"messages": user({"type": "text", "text": "where?"})},
    ]
    for fields in asked:
        answer = await bench.chat(**fields, coordinates="original")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "coordinates")
    answer = await build(card=CARDS["smolvlm2"]).chat(messages=user(url), coordinates="original")
    assert answer.json()["error"]["code"] == "unsupported"
    answer = await bench.chat(messages=user(url), coordinates="model")
    assert answer.json()["error"]["param"] == "coordinates"
    assert finder.asked == []


async def test_a_task_request_is_one_line_in_the_metrics(build: Build) -> None:
    bench = build(card=CARDS["peek"])
    await bench.post("/v1/ocr", {"image": PICTURE})
    assert [record.task for record in bench.records] == ["ocr"]


async def test_a_pictures_url_goes_through_the_same_door_as_chats(build: Build) -> None:
    bench = build(card=CARDS["peek"])
    answer: httpx.Response = await bench.post("/v1/ocr", {"image": "http://127.0.0.1:1/x.png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert [ref.source for ref in bench.door.asked] == ["http://127.0.0.1:1/x.png"]


async def test_a_form_is_read_whole_from_a_real_port(build: Build) -> None:
    bench, _ = found(build, CARDS["peek"], pair)
    noise = io.BytesIO()
    Pillow.frombytes("RGB", (700, 500), random.Random(1).randbytes(1_050_000)).save(noise, "PNG")
    async with bench.served() as url, httpx.AsyncClient() as client:
        answer = await client.post(url + "/v1/locate", files={"file": noise.getvalue()}, data={"target": "x"})
    assert answer.json()["original"] == {"width": 700, "height": 500}
