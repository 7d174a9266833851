"""Pooling merges by Ward's method: held against the same, written down plainly."""

from __future__ import annotations

import numpy
import pytest

from onsight.core.errors import InvalidRequest
from onsight.tasks.pooling import Floats, pooled, ward_clusters


def plainly(vectors: Floats, count: int) -> list[list[int]]:
    """Ward's method as its definition has it: join the two clusters whose joined variance grows least."""
    clusters = [[index] for index in range(len(vectors))]
    while len(clusters) > count:
        found = []
        for left in range(len(clusters)):
            for right in range(left + 1, len(clusters)):
                one, other = vectors[clusters[left]], vectors[clusters[right]]
                share = len(one) * len(other) / (len(one) + len(other))
                found.append((share * ((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum(), left, right))
        _, left, right = min(found)
        clusters[left] += clusters.pop(right)
    return sorted(sorted(cluster) for cluster in clusters)


def directions(rows: int, seed: int) -> Floats:
    vectors = numpy.random.default_rng(seed).normal(size=(rows, 8)).astype(numpy.float32)
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("rows", "count", "seed"), [(12, 4, 0), (25, 8, 1), (30, 1, 2), (7, 7, 3), (40, 13, 4), (1, 1, 5)]
)
def test_clusters_are_those_of_wards_method(rows: int, count: int, seed: int) -> None:
    vectors = directions(rows, seed)
    assert sorted(map(sorted, ward_clusters(vectors, count))) == plainly(vectors, count)


def test_equal_vectors_fall_together() -> None:
    vectors = directions(4, 0)[[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
    assert ward_clusters(vectors, 4) == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert numpy.allclose(pooled(vectors, 2)[:4].shape, (4, 8))
    assert numpy.allclose(pooled(numpy.repeat(vectors[:4], 3, axis=0), 3), vectors[:4], atol=1e-6)


def test_pooled_vectors_have_length_one_and_are_never_none() -> None:
    for rows, factor, left in ((10, 3, 3), (2, 3, 1), (9, 9, 1)):
        made = pooled(directions(rows, 1), factor)
        assert made.shape == (left, 8)
        assert made.dtype == numpy.float32
        assert numpy.allclose(numpy.linalg.norm(made, axis=1), 1, atol=1e-6)


def test_a_page_of_too_many_vectors_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="5000 vectors"):
        pooled(numpy.zeros((5000, 2), numpy.float32), 3)
