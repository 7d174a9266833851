"""Vectors survive every number format as well as its size allows."""

from __future__ import annotations

import numpy
import pytest

from onsight.core.embedding import NO_IMAGE, Embedding, ImageSpan
from onsight.core.errors import InvalidRequest
from onsight.tasks.vectors import Dtype, VectorForm, form, from_numbers, pack, unpack


def page(rows: int = 9, dims: int = 12) -> Embedding:
    vectors = numpy.random.default_rng(3).normal(size=(rows, dims)).astype(numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    return Embedding(vectors.tobytes(), rows, dims, ImageSpan(2, rows - 4, 1))


def numbers(embedding: Embedding) -> numpy.ndarray:
    return numpy.array(embedding.vectors(), numpy.float32)


@pytest.mark.parametrize(
    ("dtype", "size", "error"),
    [("f32", 48, 0.0), ("f16", 24, 5e-4), ("int8", 12, 0.5 / 127 + 1e-7), ("binary", 2, 2.0)],
)
def test_packed_and_unpacked_is_nearly_the_same(dtype: Dtype, size: int, error: float) -> None:
    given = page()
    data = pack(given, dtype).tobytes()
    assert len(data) == 9 * size
    back = unpack(data, dtype, 9, 12)
    assert (back.rows, back.dims, back.image) == (9, 12, NO_IMAGE)
    assert numpy.abs(numbers(back) - numbers(given)).max() <= error
    assert (pack(back, dtype) == pack(given, dtype)).all()
    assert numbers(from_numbers(pack(given, dtype), dtype, 12)).tolist() == numbers(back).tolist()


def test_binary_keeps_signs_and_length() -> None:
    given = page()
    back = numbers(unpack(pack(given, "binary").tobytes(), "binary", 9, 12))
    assert (numpy.sign(back) == numpy.where(numbers(given) > 0, 1, -1)).all()
    assert numpy.allclose(numpy.linalg.norm(back, axis=1), 1)


def test_int8_never_leaves_its_range() -> None:
    edge = Embedding(numpy.array([[1.0, -1.0]], numpy.float32).tobytes(), 1, 2)
    assert pack(edge, "int8").tolist() == [[127, -127]]


def test_only_a_pages_own_rows_and_fewer_of_them() -> None:
    given = page()
    alone = form(given, VectorForm(image_tokens_only=True))
    assert numbers(alone).tolist() == numbers(given)[2:7].tolist()
    assert alone.image == ImageSpan(0, 5, 1)
    fewer = form(given, VectorForm(image_tokens_only=True, pool_factor=2))
    assert (fewer.rows, fewer.image) == (2, NO_IMAGE)
    assert form(given, VectorForm()) is given


@pytest.mark.parametrize(
    ("values", "said"),
    [([[0.0, 0.0]], "zeros"), ([[numpy.nan, 1.0]], "not finite"), ([[numpy.inf, 1.0]], "not finite")],
)
def test_what_cannot_be_compared_is_refused(values: list[list[float]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        from_numbers(numpy.array(values), "f32")


def test_rows_of_zeros_are_padding() -> None:
    made = from_numbers(numpy.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "f32")
    assert numbers(made).tolist() == [[0.0, 1.0]]
