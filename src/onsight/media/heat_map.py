"""Where on a page a query is answered: how like the query each piece of the page is, and that drawn over the page."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray
from PIL import Image

from onsight.core.embedding import NO_IMAGE, Embedding
from onsight.core.errors import InvalidRequest

Heat = NDArray[numpy.float32]
"""[rows, columns] of the page's grid."""

_INK = (255, 0, 80)
_DARKEST = 0.65
"""How much of the hottest piece is ink; the page must still be read below it."""
_COLD = 0.35
"""What lies below this share of the way from the coldest piece to the hottest is left as it is."""


def heat_map(query: Embedding, page: Embedding, row: int | None = None) -> Heat:
    """How like the query each piece of the page is: of its vector `row`, or the best of all of them.

    Each of the query's vectors counts by how far a piece stands above what it finds on the page on average, since many
    of them are words without meaning, which find every piece alike. Raises InvalidRequest for a page whose vectors have
    no places (pooled ones have none), for vectors of different dimensions, and for a `row` that the query lacks.
    """
    if page.image == NO_IMAGE:
        raise InvalidRequest("these vectors have no places on a page; embed the page without pool_factor")
    if query.dims != page.dims:
        raise InvalidRequest(f"vectors of {query.dims} and {page.dims} numbers cannot be compared; use one model")
    if row is not None and not 0 <= row < query.rows:
        raise InvalidRequest(f"the query has no vector {row}; it has {query.rows}, from 0")
    asked = _floats(query) if row is None else _floats(query)[row : row + 1]
    products = asked @ _floats(page.image_rows()).T  # [query vectors, pieces]
    above = products - products.mean(axis=1, keepdims=True)
    heat: Heat = above.max(axis=0).reshape(-1, page.image.columns)
    return heat


def draw_heat(picture: Image.Image, heat: Heat, scale: Heat | None = None) -> None:
    """Lay `heat` over an RGB picture of the whole page, whatever its size: the hotter a piece, the more ink.

    `scale`: the heat of the page that answers best, where several are shown; a page that answers less has less ink.
    """
    scale = heat if scale is None else scale
    least, most = float(scale.min()), float(scale.max())
    # A page whose pieces are all alike is left as it is.
    shares = (heat - least) / (most - least) if most > least else numpy.zeros_like(heat)
    ink = numpy.clip((shares - _COLD) / (1 - _COLD), 0, 1) * (_DARKEST * 255)
    mask = Image.fromarray(ink.round().astype(numpy.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste(_INK, (0, 0, *picture.size), mask)


def _floats(embedding: Embedding) -> NDArray[numpy.float32]:
    """[rows, dims]."""
    return numpy.frombuffer(embedding.values, numpy.float32).reshape(embedding.rows, embedding.dims)
