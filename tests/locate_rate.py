"""How often `/v1/locate` on Peek lands inside the widget, over HTTP, beside training/evaluate.py's own way of asking.

python -m tests.locate_rate [--screens N] [--out FILE]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy
import torch

from tests.media.pictures import data_url
from tests.servers import served
from training.draw import EVALUATION_STYLE, Screen, draw_screen, to_square
from training.evaluate import Asked, answer_all, judge
from training.model import load_model, load_tokenizer
from training.questions import Question

FIRST_SEED = 7_200_000
"""Neither training's seeds nor the evaluation's own."""
SCREENS = 200


@dataclass(frozen=True)
class Rate:
    """Of `asked` widgets, how many were hit over HTTP and by the evaluation; `unreadable` answers over HTTP are misses.

    `sides`: the shortest and the longest side of the pictures, px.
    """

    asked: int
    served: int
    unreadable: int
    evaluated: int
    sides: tuple[int, int]


def png(screen: Screen) -> bytes:
    file = io.BytesIO()
    screen.image.save(file, "PNG")
    return file.getvalue()


def question(screen: Screen) -> Question:
    """A question about the screen's first widget, in the words of Peek's card."""
    return Question("where", f"Where is {screen.widgets[0].text}?", "", 0)


def draw_screens(count: int) -> list[Screen]:
    """New screens at odd sizes: none is the 256x256 px that the model sees."""
    screens = [draw_screen(FIRST_SEED + number, EVALUATION_STYLE) for number in range(count)]
    return [screen for screen in screens if screen.image.size != (256, 256)]


def measure(url: str, screens: Sequence[Screen]) -> Rate:
    """Ask the server at `url`, and the weights without it."""
    hits, unreadable = 0, 0
    with httpx.Client(timeout=60) as client:
        for screen in screens:
            sent = {"image": data_url(png(screen)), "target": screen.widgets[0].text}
            body = client.post(url + "/v1/locate", json=sent).json()
            if "instances" not in body:
                unreadable += 1
                continue
            point, (left, top, right, bottom) = body["instances"][0]["point"], screen.widgets[0].box
            hits += left <= point["x"] <= right and top <= point["y"] <= bottom
    sides = [side for screen in screens for side in screen.image.size]
    return Rate(len(screens), hits, unreadable, _evaluated(screens), (min(sides), max(sides)))


def _evaluated(screens: Sequence[Screen]) -> int:
    """How many widgets training/evaluate.py's own way of asking hits, with the same words."""
    squares = [torch.from_numpy(numpy.asarray(to_square(one.image)).transpose(2, 0, 1).copy()) for one in screens]
    asked = [question(screen) for screen in screens]
    answers = answer_all(load_model(), load_tokenizer(), torch.stack(squares), asked)
    items = (Asked(screen, one, said) for screen, one, said in zip(screens, asked, answers, strict=True))
    return sum(right for item in items for _, right in judge(item))


def page(rate: Rate, command: str) -> str:
    """The results as they are kept."""
    return f"""\
# Peek over HTTP: how often a located point lies inside the widget

Written by the command below; do not edit. {rate.asked} screens from seed {FIRST_SEED} (neither training's nor the
evaluation's), sides of {rate.sides[0]} to {rate.sides[1]} px; asked about is each screen's first widget, by its text.

| way of asking | right | of {rate.asked} |
| --- | ---: | ---: |
| `POST /v1/locate`, the point in pixels of the picture that was sent | {rate.served / rate.asked:.1%} | {rate.served} |
| the same words to the weights, by `training/evaluate.py` | {rate.evaluated / rate.asked:.1%} | {rate.evaluated} |

{rate.unreadable} answers over HTTP were no point, and are counted as misses.

- command: `{command}`
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=int, default=SCREENS)
    parser.add_argument("--out", type=Path, default=Path("docs/results/locate.md"))
    arguments = parser.parse_args()
    with served("peek") as running:
        rate = measure(running.url, draw_screens(arguments.screens))
    text = page(rate, f"python -m tests.locate_rate --screens {arguments.screens} --out {arguments.out}")
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
