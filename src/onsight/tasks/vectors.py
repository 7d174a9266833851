"""Vectors as they are sent: fewer of them where that was asked for, in number formats of four sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from onsight.core.embedding import NO_IMAGE, Embedding
from onsight.core.errors import InvalidRequest
from onsight.tasks.pooling import pooled

Dtype = Literal["f32", "f16", "int8", "binary"]

_STEPS = 127
"""int8: a number in -1..1 is a whole number of 127ths."""
_STORED = {"f32": "<f4", "f16": "<f2", "int8": "i1", "binary": "u1"}
"""How numpy calls what is sent; little-endian."""


@dataclass(frozen=True, slots=True)
class VectorForm:
    """Which of a page's vectors are wanted.

    `image_tokens_only`: those of its picture, not those of the words around it. `pool_factor`: about one for so many.
    """

    image_tokens_only: bool = False
    pool_factor: int = 1


Numbers = NDArray[numpy.generic]
"""Vectors in a number format: [rows, dims], for binary [rows, dims / 8] with the first in the highest bit."""


def form(embedding: Embedding, wanted: VectorForm) -> Embedding:
    """The vectors that are wanted; not for the event loop. Once pooled, none is at a place of the page any more."""
    if wanted.image_tokens_only and embedding.image != NO_IMAGE:
        embedding = embedding.image_rows()
    if wanted.pool_factor > 1 and embedding.image != NO_IMAGE:
        vectors = pooled(_floats(embedding), wanted.pool_factor)
        embedding = Embedding(vectors.astype(numpy.float32).tobytes(), len(vectors), embedding.dims)
    return embedding


def pack(embedding: Embedding, dtype: Dtype) -> Numbers:
    """The vectors as `dtype`; not for the event loop.

    f16 rounds, int8 is the nearest 127th, binary keeps signs alone (1 is above zero).
    """
    vectors = _floats(embedding)
    match dtype:
        case "f32" | "f16":
            return vectors.astype(_STORED[dtype])
        case "int8":
            return numpy.rint(vectors * _STEPS).clip(-_STEPS, _STEPS).astype(numpy.int8)
        case "binary":
            return numpy.packbits(vectors > 0, axis=1)


def unpack(data: bytes, dtype: Dtype, rows: int, dims: int) -> Embedding:
    """As `from_numbers`, of the bytes that `pack` made. Raises InvalidRequest when their count does not fit."""
    width = -(-dims // 8) if dtype == "binary" else dims
    stored = numpy.dtype(_STORED[dtype])
    if len(data) != rows * width * stored.itemsize:
        raise InvalidRequest(
            f"{len(data)} bytes are not {rows} vectors of {dims} numbers as {dtype}, which have"
            f" {rows * width * stored.itemsize}"
        )
    return from_numbers(numpy.frombuffer(data, stored).reshape(rows, width), dtype, dims)


def from_numbers(numbers: Numbers, dtype: Dtype, dims: int | None = None) -> Embedding:
    """The vectors that `pack` made `numbers` of, as near as can be; not for the event loop. `dims`: None is all.

    Rows of zeros are left out: they are padding, and would win over every vector that points away. Of binary all
    vectors have length 1. Raises InvalidRequest when nothing is left, or a number is not one of `dtype`.
    """
    with numpy.errstate(over="ignore"):  # what is too large is refused as not finite
        vectors = numbers.astype(numpy.float32)
    if not numpy.isfinite(vectors).all():
        raise InvalidRequest("the vectors hold a number that is not finite")
    least, most = {"int8": (-128, 127), "binary": (0, 255)}.get(dtype, (-numpy.inf, numpy.inf))
    if dtype in ("int8", "binary") and not ((vectors >= least) & (vectors <= most) & (vectors % 1 == 0)).all():
        raise InvalidRequest(f"the vectors hold a number that is no {dtype}, a whole one from {least} to {most}")
    if dtype == "int8":
        vectors /= numpy.float32(_STEPS)
    if dtype == "binary" and vectors.size:
        signs = numpy.unpackbits(vectors.astype(numpy.uint8), axis=1, count=dims).astype(numpy.float32) * 2 - 1
        vectors = signs * numpy.float32(signs.shape[1] ** -0.5)
    kept = numpy.ascontiguousarray(vectors[(vectors != 0).any(axis=1)], numpy.float32)
    if not len(kept):
        raise InvalidRequest("there are no vectors, or all of them are zeros")
    return Embedding(kept.tobytes(), len(kept), vectors.shape[1])


def _floats(embedding: Embedding) -> NDArray[numpy.float32]:
    """[rows, dims]."""
    return numpy.frombuffer(embedding.values, numpy.float32).reshape(embedding.rows, embedding.dims)
