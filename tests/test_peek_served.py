"""Peek behind a real server, asked about screens that it has never seen, by the openai SDK and by curl."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import openai
import pytest

from tests.servers import Served, served
from training.draw import EVALUATION_STYLE, Screen, draw_screen
from training.questions import Question, ask_box, ask_colour, ask_where

FIRST_SEED = 7_100_000
ASKED = 20

RIGHT = 17

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("peek") as running:
        yield running


Ask = Callable[[Screen, int, random.Random], Question]

ASKS: tuple[Ask, ...] = (ask_colour, ask_where, ask_box)


def quiz() -> list[tuple[Screen, Question]]:
    """Twenty questions about twenty screens, the kinds in turn."""
    asked = []
    for number in range(ASKED):
        chance = random.Random(number)
        screen = draw_screen(FIRST_SEED + number, EVALUATION_STYLE)
        asked.append((screen, ASKS[number % len(ASKS)](screen, chance.randrange(len(screen.widgets)), chance)))
    return asked


def is_right(screen: Screen, question: Question, answer: str) -> bool:
    """A colour must be the word, a point must lie in the widget, a description must name colour and kind."""
    assert question.widget is not None
    widget = screen.widgets[question.widget]
    answer = answer.strip()
    match question.task:
        case "colour":
            return answer.lower() == question.answer.lower()
        case "where":
            numbers = re.fullmatch(r"\((\d+), ?(\d+)\)", answer)
            if numbers is None:
                return False
            x = int(numbers[1]) / 1000 * screen.image.width
            y = int(numbers[2]) / 1000 * screen.image.height
            left, top, right, bottom = widget.box
            return left <= x <= right and top <= y <= bottom
        case _:
            return answer.split('"')[0] == question.answer.split('"')[0]


def png(screen: Screen) -> str:
    file = io.BytesIO()
    screen.image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def content(screen: Screen, question: Question) -> list[dict[str, object]]:
    return [{"type": "image_url", "image_url": {"url": png(screen)}}, {"type": "text", "text": question.text}]


def score(ask: Callable[[Screen, Question], str]) -> int:
    right = 0
    for screen, question in quiz():
        answer = ask(screen, question)
        good = is_right(screen, question, answer)
        right += good
        print(f"{'right' if good else 'WRONG'} {question.text!r} -> {answer!r} (wanted {question.answer!r})")
    print(f"{right} of {ASKED} right")
    return right


def by_sdk(server: Served, stream: bool) -> Callable[[Screen, Question], str]:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")

    def ask(screen: Screen, question: Question) -> str:
        messages = [{"role": "user", "content": content(screen, question)}]
        if not stream:
            answer = client.chat.completions.create(model="peek", messages=messages, temperature=0, max_tokens=64)
            return answer.choices[0].message.content or ""
        chunks = client.chat.completions.create(
            model="peek", messages=messages, temperature=0, max_tokens=64, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    return ask


def by_curl(server: Served) -> Callable[[Screen, Question], str]:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")

    def ask(screen: Screen, question: Question) -> str:
        body = {"messages": [{"role": "user", "content": content(screen, question)}], "temperature": 0}
        command = [curl, "-s", server.url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", "@-"]
        done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True, timeout=60)
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])

    return ask


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_openai_sdk_gets_seventeen_of_twenty_right(server: Served, stream: bool) -> None:
    assert score(by_sdk(server, stream)) >= RIGHT


def test_curl_gets_seventeen_of_twenty_right(server: Served) -> None:
    assert score(by_curl(server)) >= RIGHT


def test_without_the_picture_the_answers_are_wrong(server: Served) -> None:
    """What is right above comes from looking: the same questions about another screen get chance."""
    asked = quiz()
    others = [screen for screen, _ in (*asked[1:], asked[0])]
    ask = by_sdk(server, False)
    right = sum(
        is_right(screen, question, ask(other, question))
        for (screen, question), other in zip(asked, others, strict=True)
    )
    assert right <= 5
