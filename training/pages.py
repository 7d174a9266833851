"""Pages that Leaf learns from, and tests search: drawn with Pillow, every word and its place known by construction.

Nothing here needs torch. ``draw_page(seed)`` gives a picture and its words; the same seed gives the same page. Four
seeds in a row are a family: half of what each page may speak of is common to them, so that telling them apart takes
reading.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from training.draw import available_fonts, load_font
from training.lexicon import ADJECTIVES, CONCEPT_OF, CONCEPTS, FUNCTION_WORDS, NOUNS, VERBS

CELL = 28
"""Side, in pixels, of what an image token sees."""

MOST_PIXELS = 240 * CELL * CELL
"""A page's greatest area after it was resized for the model: 240 image tokens."""

FAMILY = 4

_SENTENCES = (("noun", "verb", "noun"), ("noun", "verb", "adjective", "noun"), ("adjective", "noun", "noun"))

Colour = tuple[int, int, int]

_TINTS: tuple[Colour, ...] = (
    (196, 60, 50), (214, 120, 30), (60, 130, 70), (40, 110, 170), (90, 70, 160), (150, 60, 110), (70, 80, 90),
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """A word on a page. ``edges``: the x of each character's borders; ``top``, ``bottom``: its rows, in pixels.

    ``concept`` is None for words that mean nothing here (numbers, function words, words of no concept).
    """

    text: str
    edges: tuple[float, ...]
    top: float
    bottom: float
    concept: int | None
    in_title: bool

    @property
    def plain(self) -> str:
        """As the lexicon and queries write it."""
        return _plain(self.text)


@dataclass(frozen=True)
class Page:
    """A drawn page: its picture and its words in the order of drawing."""

    image: Image.Image
    words: tuple[Word, ...]
    seed: int

    def concepts(self) -> frozenset[int]:
        """All that it speaks of."""
        return frozenset(word.concept for word in self.words if word.concept is not None)

    def title_concepts(self) -> frozenset[int]:
        """What its title speaks of."""
        return frozenset(word.concept for word in self.words if word.concept is not None and word.in_title)


@dataclass(frozen=True)
class PageStyle:
    """How pages are drawn, in pixels: ``sides`` of the page, ``text_px`` the em of its body.

    ``enlarged``: the share of pages drawn up to 2.2 times as large, all alike, as a scan would be. ``fonts``: names of
    fonts to choose from; None is all that there are, the built-in one for two pages in five. ``strange``: words of no
    concept, of which every page gets one, if there are any. ``packed``: the share of pages full of words that mean
    something, from which reading is learned soonest. ``even``: whether every concept is as frequent as any other, or
    some are rare, as words are.
    """

    sides: tuple[int, int] = (336, 532)
    text_px: tuple[float, float] = (16.0, 23.0)
    enlarged: float = 0.2
    fonts: tuple[str, ...] | None = None
    strange: tuple[str, ...] = ()
    packed: float = 0.0
    even: bool = True


def draw_page(seed: int, style: PageStyle = PageStyle()) -> Page:
    """Draw the page of ``seed``: a title and, below it, paragraphs, tables, lists and charts until it is full."""
    rng = random.Random(seed)
    width, height = _size(rng, style)
    scale = 1.0 if rng.random() >= style.enlarged else rng.uniform(1.1, 2.2)
    fonts = available_fonts() if style.fonts is None else style.fonts
    font = fonts[0] if rng.random() < 0.4 else rng.choice(fonts)
    em = max(round(rng.uniform(*style.text_px) * scale), 8)
    pen = _Pen(rng, Image.new("RGB", (round(width * scale), round(height * scale)), _paper(rng)), font, em)
    packed = rng.random() < style.packed
    speech = _Speech(rng, random.Random(seed // FAMILY), packed, style.even)
    pen.title([speech.word() for _ in range(rng.choice((1, 2, 2, 3)))])
    if style.strange:
        pen.line([rng.choice(style.strange)])
    blocks: list[Callable[[_Speech], None]] = [pen.paragraph, pen.paragraph, pen.table, pen.items, pen.chart]
    while pen.room():
        rng.choice(blocks[: 2 if packed else None])(speech)
    return Page(pen.image, tuple(pen.words), seed)


def _size(rng: random.Random, style: PageStyle) -> tuple[int, int]:
    while True:
        width, height = rng.randint(*style.sides), rng.randint(*style.sides)
        if 0.6 * MOST_PIXELS <= width * height <= MOST_PIXELS:
            return width, height


def _paper(rng: random.Random) -> Colour:
    shade = rng.randint(232, 255)
    return shade, max(shade - rng.choice((0, 0, 4, 8)), 0), max(shade - rng.choice((0, 0, 8, 20)), 0)


class _Speech:
    """What one page speaks of: a deck of concepts of each kind, dealt again and again, half of it its family's."""

    def __init__(self, own: random.Random, family: random.Random, packed: bool, even: bool):
        self._rng, self._packed = own, packed
        self._decks: dict[str, list[int]] = {}
        first = 0
        for kind, group, shared in (("noun", NOUNS, 14), ("adjective", ADJECTIVES, 6), ("verb", VERBS, 3)):
            numbers = range(first, first + len(group))
            first += len(group)
            usual = [n for n in numbers if even or family.random() < _frequency(n)]
            often = [n for n in numbers if even or own.random() < _frequency(n)]
            common = family.sample(usual, min(shared, len(usual)))
            deck = common + own.sample(often, min(shared, len(often)))
            self._decks[kind] = own.sample(deck, len(deck))

    def word(self, kind: str | None = None) -> str:
        """The next word of that kind, or of any."""
        chosen = kind or self._rng.choices(("noun", "adjective", "verb"), (7, 2, 1))[0]
        deck = self._decks[chosen]
        deck.append(deck.pop(0))
        return self._rng.choice(CONCEPTS[deck[-1]])

    def sentence(self) -> list[str]:
        """Words of a sentence, function words among them."""
        rng = self._rng
        words: list[str] = []
        for kind in rng.choice(_SENTENCES):
            words += rng.sample(FUNCTION_WORDS, rng.choice((0, 0, 0, 1) if self._packed else (0, 1, 1, 2)))
            words.append(self.word(kind))
        return words


def _frequency(concept: int) -> float:
    """How often a concept is thought of, from 0.02 to 0.8, unlike its neighbours in the lexicon."""
    return 0.02 + 0.78 * (concept * 37 % 101 / 100) ** 2


class _Pen:
    """Writes on the page from top to bottom; ``words`` is all that it wrote."""

    def __init__(self, rng: random.Random, image: Image.Image, font: str, em: int):
        self.image, self.words = image, list[Word]()
        self._rng, self._draw, self._font_name, self._em = rng, ImageDraw.Draw(image), font, em
        self._ink: Colour = rng.choice(((0, 0, 0), (25, 25, 30), (20, 30, 60), (50, 40, 35)))
        self._margin = round(em * rng.uniform(0.4, 1.2))
        self._leading = em * rng.uniform(1.3, 1.65)
        self._y = self._margin * rng.uniform(0.5, 1.2)
        self._indent = 0.0

    def room(self) -> bool:
        """Whether another line fits."""
        return self._y + self._leading < self.image.height

    def title(self, words: list[str]) -> None:
        """Large words on top, at times on a band."""
        rng = self._rng
        em = round(self._em * rng.uniform(1.05, 1.5))
        write: Callable[[str], str] = rng.choice((str.title, str.title, str.capitalize, str.upper))
        texts = [write(word) for word in words]
        font = load_font(self._font_name, em)
        while len(texts) > 1 and font.getlength(" ".join(texts)) > self.image.width - 2 * self._margin:
            texts.pop()
        band = rng.random() < 0.3
        ink = rng.choice(_TINTS) if rng.random() < 0.4 else self._ink
        if band:
            self._draw.rectangle((0, 0, self.image.width, self._y + em * 1.35), fill=rng.choice(_TINTS))
            ink = (255, 255, 255)
        x = float(self._margin)
        if rng.random() < 0.4:
            x = max((self.image.width - font.getlength(" ".join(texts))) / 2, x)
        for text in texts:
            x = self._write(x, self._y + em, text, em, ink, in_title=True) + em * 0.28
        self._y += em * (1.5 if band else 1.4) + self._em * 0.2

    def line(self, words: list[str]) -> None:
        """Words beside each other, as many as fit."""
        x = self._margin + self._indent
        for word in words:
            if self._length(word) + x > self.image.width - self._margin * 0.5:
                break
            x = self._write(x, self._y + self._em, word, self._em, self._ink) + self._em * 0.3
        self._y += self._leading

    def paragraph(self, speech: _Speech) -> None:
        """One to four sentences, broken into lines."""
        text: list[str] = []
        for _ in range(self._rng.randint(1, 4)):
            words = speech.sentence()
            text += [words[0].capitalize(), *words[1:-1], words[-1] + "."]
        right = self.image.width - self._margin * 0.5
        while text and self.room():
            count, x = 0, float(self._margin)
            while count < len(text) and x + self._length(text[count]) <= right:
                x += self._length(text[count]) + self._em * 0.3
                count += 1
            self.line(text[: max(count, 1)])
            text = text[max(count, 1) :]
        self._y += self._em * 0.4

    def items(self, speech: _Speech) -> None:
        """A list with dots or numbers."""
        numbered = self._rng.random() < 0.5
        self._indent = self._em * 1.4
        for number in range(self._rng.randint(2, 4)):
            if self.room():
                middle = self._y + self._em * 0.66
                if numbered:
                    self._write(self._margin, self._y + self._em, f"{number + 1}.", self._em, self._ink)
                else:
                    left, radius = self._margin + self._em * 0.2, self._em * 0.14
                    self._draw.ellipse((left, middle - radius, left + 2 * radius, middle + radius), fill=self._ink)
                self.line([speech.word("adjective"), speech.word("noun")][self._rng.randint(0, 1) :])
        self._indent = 0.0
        self._y += self._em * 0.4

    def table(self, speech: _Speech) -> None:
        """Rows of a word and numbers, with rules or shaded rows."""
        rng, rows = self._rng, self._rng.randint(2, 5)
        ruled = rng.random() < 0.6
        column = self.image.width * rng.uniform(0.42, 0.58)
        for row in range(rows):
            if not self.room():
                break
            if not ruled and row % 2 == 0:
                shade = (222, 226, 232)
                self._draw.rectangle((0, self._y, self.image.width, self._y + self._leading * 0.96), fill=shade)
            self._write(self._margin + 2, self._y + self._em, speech.word("noun").capitalize(), self._em, self._ink)
            second = speech.word() if rng.random() < 0.3 else str(rng.randint(2, 9999))
            self._write(column, self._y + self._em, second, self._em, self._ink)
            if ruled:
                y = self._y + self._leading * 0.98
                self._draw.line((self._margin * 0.6, y, self.image.width - self._margin * 0.6, y), fill=(120, 120, 120))
            self._y += self._leading
        self._y += self._em * 0.4

    def chart(self, speech: _Speech) -> None:
        """Bars that lie, each with its word before it, or on it."""
        rng = self._rng
        colour, inside = rng.choice(_TINTS), rng.random() < 0.3
        start = self.image.width * rng.uniform(0.4, 0.5)
        for _ in range(rng.randint(2, 4)):
            if not self.room():
                break
            left = self._margin * 0.7 if inside else start
            right = left + (self.image.width - left - self._margin) * rng.uniform(0.45 if inside else 0.1, 1.0)
            box = (left, self._y + self._em * 0.02, right, self._y + self._em * 1.3)
            self._draw.rectangle(box, fill=colour)
            word = speech.word("noun")
            fits = inside and self._length(word) + self._em * 0.6 <= right - left
            if fits or not inside:
                x, ink = (left + self._em * 0.3, (255, 255, 255)) if inside else (float(self._margin), self._ink)
                self._write(x, self._y + self._em, word, self._em, ink)
            self._y += self._leading + self._em * 0.1
        self._y += self._em * 0.4

    def _length(self, text: str) -> float:
        return _edges(text, self._font_name, self._em)[-1]

    def _write(self, x: float, baseline: float, text: str, em: int, ink: Colour, *, in_title: bool = False) -> float:
        """Write one word and note it, unless it would leave the page; gives the x of its end."""
        left = round(x)
        edges = tuple(left + edge for edge in _edges(text, self._font_name, em))
        if edges[-1] <= self.image.width and baseline + em * 0.25 <= self.image.height:
            font = load_font(self._font_name, em)
            self._draw.text((left, round(baseline)), text, font=font, fill=ink, anchor="ls")
            concept = CONCEPT_OF.get(_plain(text))
            self.words.append(Word(text, edges, baseline - em * 0.72, baseline + em * 0.05, concept, in_title))
        return edges[-1]


def _plain(text: str) -> str:
    return text.lower().rstrip(".")


@lru_cache(maxsize=200_000)
def _edges(text: str, font_name: str, em: int) -> tuple[float, ...]:
    """The x of the borders of each of the text's characters, from 0."""
    edges = [0.0]
    for character in text:
        edges.append(edges[-1] + _advance(character, font_name, em))
    return tuple(edges)


@lru_cache(maxsize=50_000)
def _advance(character: str, font_name: str, em: int) -> float:
    font: ImageFont.FreeTypeFont = load_font(font_name, em)
    return font.getlength(character)
