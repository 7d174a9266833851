"""An embedding is its bytes and its shape, which must fit each other."""

from __future__ import annotations

from array import array

import pytest

from onsight.core.embedding import NO_IMAGE, Embedding


def test_values_are_read_row_by_row() -> None:
    embedding = Embedding(array("f", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).tobytes(), rows=3, dims=2)
    assert embedding.vectors() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert (embedding.image.start, embedding.image.length) == (-1, 0)
    assert embedding.image is NO_IMAGE


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="20 bytes are not 3 rows of 2"):
        Embedding(bytes(20), rows=3, dims=2)
