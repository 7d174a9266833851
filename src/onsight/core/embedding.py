"""The vectors of a query or a page, one for each of its tokens, and what is to be known of their model."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """What a model's vectors are: `dims` numbers each, made with weights of the number format `dtype` ("float32").

    `image_token_id`: the token that stands for a piece of a page; `merge`: how many of the vision tower's patches such
    a piece has on each side.
    """

    dims: int
    dtype: str
    image_token_id: int
    merge: int


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Which rows of an embedding are the page's own: `length` of them from row `start` on, row by row of a grid with
    so many `columns`."""

    start: int
    length: int
    columns: int


NO_IMAGE = ImageSpan(-1, 0, 0)
"""The span of a query."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vectors of one input, each of length 1; rows that only padded a batch are never among them.

    `values`: float32 in this machine's byte order, row after row, `rows * dims * 4` bytes.
    """

    values: bytes
    rows: int
    dims: int
    image: ImageSpan = NO_IMAGE

    def __post_init__(self) -> None:
        """Raises ValueError when the byte count does not fit the shape."""
        if len(self.values) != self.rows * self.dims * 4:
            raise ValueError(f"{len(self.values)} bytes are not {self.rows} rows of {self.dims} float32 numbers")

    def image_rows(self) -> Embedding:
        """The rows of the page's image alone."""
        row_bytes = self.dims * 4
        start, length = self.image.start, self.image.length
        rows = self.values[start * row_bytes : (start + length) * row_bytes]
        return Embedding(rows, length, self.dims, replace(self.image, start=0))

    def vectors(self) -> list[list[float]]:
        """The same as nested lists, [rows][dims]."""
        numbers = array("f", self.values).tolist()
        return [numbers[start : start + self.dims] for start in range(0, len(numbers), self.dims)]
