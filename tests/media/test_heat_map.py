"""A heat-map is hottest where the page says what is asked, on pages of any shape."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from onsight.core.embedding import Embedding, ImageSpan
from onsight.core.errors import InvalidRequest
from onsight.core.messages import Image, Text
from onsight.media.heat_map import draw_heat, heat_map
from training.draw import available_fonts, load_font
from training.evaluate_leaf import Retriever
from training.leaf import LEAF

CELL = 28


def embedding(vectors: list[list[float]], image: ImageSpan | None = None) -> Embedding:
    data = numpy.array(vectors, numpy.float32)
    made = Embedding(data.tobytes(), *data.shape)
    return made if image is None else Embedding(made.values, made.rows, made.dims, image)


PAGE = embedding([[9, 9], *([0, column] for column in range(6)), [9, 9]], ImageSpan(1, 6, 3))


def test_pieces_are_row_by_row_and_words_around_the_page_are_left_out() -> None:
    heat = heat_map(embedding([[0, 1]]), PAGE)
    assert heat.tolist() == [[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]]


def test_each_vector_counts_by_what_stands_out_and_one_can_be_asked_for() -> None:
    page = embedding([[10, 0], [10, 0], [10, 1]], ImageSpan(0, 3, 3))
    query = embedding([[1, 0], [0, 1]])  # the first finds every piece alike
    assert heat_map(query, page).argmax() == 2
    assert heat_map(query, page, row=0).tolist() == [[0, 0, 0]]
    assert heat_map(query, page, row=1).argmax() == 2


@pytest.mark.parametrize(
    ("query", "page", "row", "said"),
    [
        ([[0.0, 1.0]], embedding([[0, 1]]), None, "no places on a page"),
        ([[0.0, 1.0, 0.0]], PAGE, None, "3 and 2 numbers"),
        ([[0.0, 1.0]], PAGE, 1, "no vector 1; it has 1"),
        ([[0.0, 1.0]], PAGE, -1, "no vector -1"),
    ],
)
def test_what_has_no_places_is_refused(query: list[list[float]], page: Embedding, row: int | None, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        heat_map(embedding(query), page, row)


def test_ink_lies_on_the_hot_pieces_alone() -> None:
    picture = Pillow.new("RGB", (301, 203), "white")
    draw_heat(picture, numpy.array([[0, 0, 0], [0, 0, 1]], numpy.float32))
    red, green, _ = picture.getpixel((290, 190))
    assert red == 255
    assert green < 120
    assert picture.getpixel((20, 20)) == picture.getpixel((20, 190)) == picture.getpixel((290, 20)) == (255,) * 3
    less = Pillow.new("RGB", (301, 203), "white")
    draw_heat(less, numpy.array([[0, 0, 0], [0, 0, 0.5]], numpy.float32), numpy.array([[0, 1]], numpy.float32))
    assert green < less.getpixel((290, 190))[1] < 255
    blank = Pillow.new("RGB", (30, 20), "white")
    draw_heat(blank, numpy.ones((2, 3), numpy.float32))
    assert blank.getcolors() == [(600, (255, 255, 255))]


@pytest.mark.model
@pytest.mark.parametrize("size", [(333, 517), (517, 333), (401, 401), (700, 911)])
def test_leaf_is_hottest_on_the_word_that_is_asked_for(size: tuple[int, int]) -> None:
    width, height = size
    retriever = Retriever(LEAF)
    for left, top in ((0.1, 0.1), (0.55, 0.2), (0.3, 0.8)):
        picture = Pillow.new("RGB", size, "white")
        em = round(20 * (width * height / 188_160) ** 0.5)
        font = load_font(available_fonts()[0], em)
        pen = ImageDraw.Draw(picture)
        x, y = round(left * width), round(top * height)
        pen.text((x, y), "harbour", font=font, fill="black")
        pen.text((round(0.1 * width), round(0.5 * height)), "the old drum", font=font, fill="black")
        query, page = retriever.embed(Text("harbour")), retriever.embed(Image.of(picture.tobytes(), *size))
        heat = heat_map(query, page)
        row, column = numpy.unravel_index(heat.argmax(), heat.shape)
        wide, tall = width / heat.shape[1], height / heat.shape[0]
        box = pen.textbbox((x, y), "harbour", font=font)
        assert box[0] - wide < (column + 0.5) * wide < box[2] + wide
        assert box[1] - tall < (row + 0.5) * tall < box[3] + tall
