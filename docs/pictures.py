"""Draw the README's pictures: a screen, and where a running server says a widget is: `python docs/pictures.py URL`."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import httpx
from PIL import ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.draw import EVALUATION_STYLE, Screen, draw_screen

IMAGES = Path(__file__).parent / "images"
SEED = 7_200_006
TARGET = 4
"""Which widget of the screen the pictures ask for."""


def ask(url: str, picture: Path, question: str) -> str:
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def mark(screen: Screen, answer: str) -> None:
    """Draw a ring where `answer` (thousandths) points, and save the picture."""
    numbers = re.fullmatch(r"\((\d+), ?(\d+)\)", answer)
    if numbers is None:
        raise SystemExit(f"the answer {answer!r} is no point")
    image = screen.image.copy()
    x, y = int(numbers[1]) / 1000 * image.width, int(numbers[2]) / 1000 * image.height
    draw = ImageDraw.Draw(image)
    size = max(image.size) / 40
    draw.ellipse((x - size, y - size, x + size, y + size), outline=(255, 0, 80), width=max(round(size / 4), 2))
    draw.line((x - size * 1.6, y, x + size * 1.6, y), fill=(255, 0, 80), width=2)
    draw.line((x, y - size * 1.6, x, y + size * 1.6), fill=(255, 0, 80), width=2)
    image.save(IMAGES / "where.png")


def main(url: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    screen = draw_screen(SEED, EVALUATION_STYLE)
    screen.image.save(IMAGES / "screen.png")
    question = f"Where is {screen.widgets[TARGET].text}?"
    answer = ask(url, IMAGES / "screen.png", question)
    print(f"{question} {answer}")
    mark(screen, answer)


if __name__ == "__main__":
    main(sys.argv[1])
