"""Draw the README's pictures (a screen, and on it the point that the README prints) and the page's examples.

`python docs/pictures.py`
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from PIL import ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.draw import EVALUATION_STYLE, draw_screen
from training.evaluate_leaf import FIRST_SEED, STYLE
from training.pages import FAMILY, draw_page

README = Path(__file__).parents[1] / "README.md"
IMAGES = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parents[1] / "src" / "onsight" / "ui" / "static" / "examples"
EXAMPLE_SEEDS = (7_200_001, 7_200_002, 7_200_006)
EXAMPLE_PAGES = range(FIRST_SEED, FIRST_SEED + 4 * FAMILY, FAMILY)
SEED = 7_200_006
QUESTION = "Where is Draft?"
INK = (255, 0, 160)


def answered() -> tuple[int, int]:
    """The point that the README prints, in thousandths of the picture's width and height."""
    found = re.search(re.escape(QUESTION) + r'"\n *\((\d+), (\d+)\)', README.read_text("utf-8"))
    if found is None:
        raise SystemExit(f"the README prints no point after {QUESTION!r}; run make readme first")
    return int(found[1]), int(found[2])


def draw_examples() -> None:
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(EXAMPLE_SEEDS, 1):
        draw_screen(seed, EVALUATION_STYLE).image.save(EXAMPLES / f"screen_{number}.png", optimize=True)
    for number, seed in enumerate(EXAMPLE_PAGES, 1):
        draw_page(seed, STYLE).image.save(EXAMPLES / f"page_{number}.png", optimize=True)


def main() -> None:
    draw_examples()
    IMAGES.mkdir(exist_ok=True)
    image = draw_screen(SEED, EVALUATION_STYLE).image
    image.save(IMAGES / "screen.png")
    x, y = (part * side / 1000 for part, side in zip(answered(), image.size, strict=True))
    pen = ImageDraw.Draw(image)
    pen.ellipse((x - 14, y - 14, x + 14, y + 14), outline=INK, width=4)
    pen.line((x - 24, y, x + 24, y), fill=INK, width=3)
    pen.line((x, y - 24, x, y + 24), fill=INK, width=3)
    image.save(IMAGES / "asked.png")


if __name__ == "__main__":
    main()
