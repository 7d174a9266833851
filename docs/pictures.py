"""Draw the README's pictures: a screen, and the box on it that the README asks about: `python docs/pictures.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.draw import EVALUATION_STYLE, draw_screen
from training.questions import box_text

IMAGES = Path(__file__).parent / "images"
SEED = 7_200_006
TARGET = 4
"""Which widget of the screen the README asks about."""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    screen = draw_screen(SEED, EVALUATION_STYLE)
    screen.image.save(IMAGES / "screen.png")
    widget = screen.widgets[TARGET]
    marked = screen.image.copy()
    left, top, right, bottom = widget.box
    ImageDraw.Draw(marked).rectangle((left - 5, top - 5, right + 4, bottom + 4), outline=(255, 0, 160), width=3)
    marked.save(IMAGES / "asked.png")
    print(box_text(screen, widget), widget)


if __name__ == "__main__":
    main()
