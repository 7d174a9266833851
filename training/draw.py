"""Screens that Peek learns from, and tests ask about: drawn with Pillow, the truth known by construction.

Nothing here needs torch. ``draw_screen(seed)`` gives a picture and its widgets; the same seed gives the same screen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.words import HELD_OUT_WORDS, KNOWN_WORDS, made_up_word

IMAGE_SIDE = 256
"""Side, in pixels, of the square that the image processor makes of every picture."""

KINDS: tuple[str, ...] = ("button", "field", "label", "checkbox", "menu", "tab")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 130, 20),
    "yellow": (240, 205, 30),
    "green": (35, 155, 65),
    "cyan": (25, 185, 200),
    "blue": (35, 85, 220),
    "purple": (125, 55, 180),
    "pink": (245, 115, 180),
}

BUILT_IN_FONT = "built-in"
"""Pillow's own scalable font, which is always there."""

FONT_FILES: tuple[str, ...] = (
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "FreeSans.ttf",
    "Roboto-Regular.ttf",
    "OpenSans-Regular.ttf",
)
"""The other training fonts by file name; training/README.md says which Debian packages hold them."""

_FONT_ROOTS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")


@dataclass(frozen=True)
class Widget:
    """One widget: ``box`` is (left, top, right, bottom) in pixels of the picture, right and bottom exclusive."""

    kind: str
    colour: str
    text: str
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, in pixels of the picture."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class TextRun:
    """Where a widget's text stands: ``edges`` are the x of each character's borders, ``top``/``bottom`` its rows."""

    text: str
    edges: tuple[float, ...]
    top: float
    bottom: float


@dataclass(frozen=True)
class Screen:
    """A drawn screen. ``runs[i]`` is the text of ``widgets[i]``; widgets stand in reading order."""

    image: Image.Image
    widgets: tuple[Widget, ...]
    runs: tuple[TextRun, ...]
    dark: bool
    seed: int


@dataclass(frozen=True)
class Style:
    """How screens are drawn. ``text_px`` is the range of font sizes in pixels of the 256-pixel square's long side."""

    text_px: tuple[float, float] = (15.0, 23.0)
    widgets: tuple[int, int] = (3, 14)
    made_up: float = 0.15
    held_out: float = 0.0
    built_in_only: bool = False
    sides: tuple[int, int] = (256, 720)


EVALUATION_STYLE = Style(made_up=0.1, held_out=0.1, built_in_only=True, sides=(233, 997))


@lru_cache(maxsize=1)
def available_fonts() -> tuple[str, ...]:
    """The training fonts found on this machine: the built-in one first, then paths of those of FONT_FILES."""
    found: dict[str, str] = {}
    for root in _FONT_ROOTS:
        for path in sorted(root.rglob("*.ttf")) if root.is_dir() else ():
            if path.name in FONT_FILES:
                found.setdefault(path.name, str(path))
    return (BUILT_IN_FONT, *(found[name] for name in FONT_FILES if name in found))


@lru_cache(maxsize=1024)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font ``name`` (of available_fonts) with ``size`` pixels to the em, kerning off."""
    if name == BUILT_IN_FONT:
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType, so its built-in font is not scalable")
        return font
    return ImageFont.truetype(name, size=size, layout_engine=ImageFont.Layout.BASIC)


def draw_screen(seed: int, style: Style = Style()) -> Screen:
    """Draw the screen of ``seed``: 3 to 14 widgets, no two with the same text, none overlapping."""
    rng = random.Random(seed)
    scale = 1.0
    for _ in range(20):
        plan = _Plan.make(rng, style, scale)
        placed = plan.place(rng, style)
        if len(placed) >= style.widgets[0]:
            return _paint(plan, placed, seed, rng)
        scale *= 0.93
    raise RuntimeError(f"no layout found for screen {seed}")


@dataclass(frozen=True)
class _Plan:
    """Everything about a screen that is settled before its widgets are placed (lengths in picture pixels)."""

    width: int
    height: int
    em: int
    font_name: str
    dark: bool
    wanted: int

    @staticmethod
    def make(rng: random.Random, style: Style, scale: float) -> _Plan:
        low, high = style.sides
        long_side = round(low * (high / low) ** (rng.random() ** 1.7))
        ratio = 2.0 ** -rng.choice((0.0, rng.random() * 0.5, rng.random() * 0.6, rng.random()))
        short_side = max(round(long_side * ratio), 96)
        width, height = (long_side, short_side) if rng.random() < 0.6 else (short_side, long_side)
        wanted = rng.randint(*style.widgets)
        crowding = (wanted - style.widgets[0]) / max(style.widgets[1] - style.widgets[0], 1)
        smallest, largest = style.text_px
        text_px = scale * rng.uniform(smallest, max(smallest, largest - 0.6 * crowding * (largest - smallest)))
        fonts = available_fonts()
        built_in = style.built_in_only or rng.random() < 0.4
        font_name = fonts[0] if built_in else rng.choice(fonts)
        em = max(round(text_px * long_side / IMAGE_SIDE), 7)
        return _Plan(width, height, em, font_name, rng.random() < 0.4, wanted)

    def place(self, rng: random.Random, style: Style) -> list[tuple[str, str, tuple[int, int, int, int]]]:
        """(kind, text, box) of each widget, in reading order, on a loose grid of rows."""
        font = load_font(self.font_name, self.em)
        em, margin = self.em, max(round(self.em * 0.3), 3)
        row_height = em * rng.uniform(1.75, 2.3)
        rows = max(int((self.height - 2 * margin) / row_height), 1)
        slack = max(self.height - 2 * margin - rows * row_height, 0.0)
        spacing = row_height + slack / rows * rng.random()
        top = margin + rng.random() * (self.height - 2 * margin - spacing * rows)
        placed: list[tuple[str, str, tuple[int, int, int, int]]] = []
        used: set[str] = set()
        for row in range(rows):
            x = margin + rng.random() * rng.random() * 3 * em
            while True:
                kind, text = rng.choice(KINDS), _fresh_word(rng, style, used)
                height = min(em * rng.uniform(1.4, 1.7), row_height - 2)
                width = font.getlength(text) + em * _EXTRA_WIDTH[kind] + em * rng.random() ** 3 * 2
                if x + width > self.width - margin:
                    break
                used.add(text.lower())
                y = top + row * spacing + rng.random() * (row_height - height - 1)
                placed.append((kind, text, (round(x), round(y), round(x + width), round(y + height))))
                x += width + em * rng.uniform(0.3, 1.6)
        while len(placed) > self.wanted:
            placed.pop(rng.randrange(len(placed)))
        return placed


_EXTRA_WIDTH = {"button": 0.9, "field": 0.8, "label": 0.2, "checkbox": 1.6, "menu": 1.7, "tab": 0.6}


def _fresh_word(rng: random.Random, style: Style, used: set[str]) -> str:
    while True:
        draw = rng.random()
        if draw < style.made_up:
            word = made_up_word(rng)
        elif draw < style.made_up + style.held_out:
            word = rng.choice(HELD_OUT_WORDS)
        else:
            word = rng.choice(KNOWN_WORDS)
        if word.lower() not in used:
            return word


def _paint(plan: _Plan, placed: list, seed: int, rng: random.Random) -> Screen:
    shade = rng.randint(8, 48) if plan.dark else rng.randint(225, 255)
    paper = tuple(min(max(shade + rng.randint(-6, 6), 0), 255) for _ in range(3))
    image = Image.new("RGB", (plan.width, plan.height), paper)
    pen = _Pen(ImageDraw.Draw(image), load_font(plan.font_name, plan.em), plan, rng)
    widgets, runs = [], []
    for kind, text, box in placed:
        name = rng.choice(tuple(COLOURS))
        colour = tuple(min(max(c + rng.randint(-10, 10), 0), 255) for c in COLOURS[name])
        runs.append(getattr(pen, kind)(box, text, colour))
        widgets.append(Widget(kind, name, text, box))
    return Screen(image, tuple(widgets), tuple(runs), plan.dark, seed)


class _Pen:
    """Draws one widget a call; every method takes (box, text, colour) and gives the text's run."""

    def __init__(self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, plan: _Plan, rng: random.Random):
        self.draw, self.font, self.em, self.dark, self.rng = draw, font, plan.em, plan.dark, rng
        self.line = max(round(plan.em * 0.13), 1)
        self.ink = (235, 235, 235) if plan.dark else (25, 25, 25)
        self.radius = self.em * rng.choice((0.0, 0.15, 0.35))

    def _text(self, x: float, box: tuple[int, int, int, int], text: str, fill: tuple[int, ...]) -> TextRun:
        """Write ``text`` from ``x``, its capitals' middle in the middle of the box."""
        middle = (box[1] + box[3]) / 2
        baseline = middle + self.em * 0.35
        self.draw.text((round(x), round(baseline)), text, font=self.font, fill=fill, anchor="ls")
        edges = [float(round(x))]
        for character in text:
            edges.append(edges[-1] + self.font.getlength(character))
        return TextRun(text, tuple(edges), baseline - self.em * 0.75, baseline + self.em * 0.1)

    def _middle(self, box: tuple[int, int, int, int], text: str) -> float:
        return (box[0] + box[2] - self.font.getlength(text)) / 2

    def button(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        self.draw.rounded_rectangle((box[0], box[1], box[2] - 1, box[3] - 1), self.radius, fill=colour)
        return self._text(self._middle(box, text), box, text, _contrasting(colour))

    def field(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        inside = (12, 12, 14) if self.dark else (255, 255, 255)
        frame = (box[0], box[1], box[2] - 1, box[3] - 1)
        self.draw.rectangle(frame, fill=inside, outline=colour, width=self.line)
        return self._text(box[0] + self.em * 0.35, box, text, self.ink)

    def label(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        if not self.dark:
            colour = tuple(round(c * 0.85) for c in colour)
        return self._text(box[0] + self.em * 0.1, box, text, colour)

    def checkbox(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        side = round(self.em * 0.9)
        top = (box[1] + box[3] - side) // 2
        square = (box[0], top, box[0] + side, top + side)
        if self.rng.random() < 0.5:
            self.draw.rectangle(square, fill=colour)
            tick = [(0.2, 0.5), (0.42, 0.75), (0.8, 0.22)]
            points = [(square[0] + x * side, top + y * side) for x, y in tick]
            self.draw.line(points, fill=_contrasting(colour), width=self.line)
        else:
            self.draw.rectangle(square, outline=colour, width=max(self.line, 2))
        return self._text(box[0] + self.em * 1.3, box, text, self.ink)

    def menu(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        frame = (box[0], box[1], box[2] - 1, box[3] - 1)
        self.draw.rectangle(frame, fill=(70, 70, 74) if self.dark else (212, 212, 216))
        x, y = box[2] - self.em * 0.95, (box[1] + box[3]) / 2 - self.em * 0.2
        self.draw.polygon([(x, y), (x + self.em * 0.7, y), (x + self.em * 0.35, y + self.em * 0.5)], fill=colour)
        return self._text(box[0] + self.em * 0.35, box, text, self.ink)

    def tab(self, box: tuple[int, int, int, int], text: str, colour: tuple[int, ...]) -> TextRun:
        bar = max(round(self.em * 0.18), 2)
        self.draw.rectangle((box[0], box[3] - bar, box[2] - 1, box[3] - 1), fill=colour)
        return self._text(self._middle(box, text), (box[0], box[1], box[2], box[3] - bar), text, self.ink)


def _contrasting(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on ``colour``."""
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    return (15, 15, 15) if light else (250, 250, 250)


def to_square(image: Image.Image) -> Image.Image:
    """The 256x256 picture that the SmolVLM image processor (splitting off) makes of ``image``, before normalising.

    It resizes twice: to a long side of 256 with the aspect kept (the other side made even), then to the square.
    """
    width, height = image.size
    if width >= height:
        across, down = IMAGE_SIDE, int(IMAGE_SIDE / (width / height))
        down += down % 2
    else:
        across, down = int(IMAGE_SIDE * (width / height)), IMAGE_SIDE
        across += across % 2
    fitted = image.resize((max(across, 1), max(down, 1)), Image.Resampling.LANCZOS)
    return fitted.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
