"""Fewer vectors for a page: those of like direction become one."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from onsight.core.errors import InvalidRequest

_MOST_ROWS = 4096
"""Each pair's distance is held at once: 64 MB."""

Floats = NDArray[numpy.float32]


def pooled(vectors: Floats, factor: int) -> Floats:
    """[max(rows // factor, 1), dims]: means of Ward's clusters, of length 1, in the order of their first vectors.

    `vectors`: [rows, dims]. Raises InvalidRequest for more than 4096 rows.
    """
    rows = len(vectors)
    if rows > _MOST_ROWS:
        raise InvalidRequest(
            f"pool_factor is {factor}, but the page has {rows} vectors, and at most {_MOST_ROWS} are pooled: lower its"
            " max_pixels",
            param="pool_factor",
        )
    clusters = ward_clusters(vectors, max(rows // factor, 1))
    means: Floats = numpy.stack([vectors[members].mean(axis=0) for members in clusters])
    means /= numpy.maximum(numpy.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means


def ward_clusters(vectors: Floats, count: int) -> list[list[int]]:
    """Indices of `vectors` [rows, dims] in `count` clusters, merged so that their variances grow least."""
    owner = list(range(len(vectors)))
    for _, kept, gone in sorted(_merges(vectors))[: len(vectors) - count]:
        owner[_root(owner, gone)] = _root(owner, kept)
    clusters: dict[int, list[int]] = {}
    for index in range(len(vectors)):
        clusters.setdefault(_root(owner, index), []).append(index)
    return list(clusters.values())


def _root(owner: list[int], index: int) -> int:
    while owner[index] != index:
        owner[index] = owner[owner[index]]
        index = owner[index]
    return index


def _merges(vectors: Floats) -> list[tuple[float, int, int]]:
    """(height, one, other) of all merges of Ward's method, by chains of nearest neighbours."""
    rows = len(vectors)
    squares = (vectors**2).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * vectors @ vectors.T  # [rows, rows], squared distances
    numpy.fill_diagonal(apart, numpy.inf)
    sizes = numpy.ones(rows, dtype=numpy.float32)
    alive = numpy.ones(rows, dtype=bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < rows - 1:
        if not chain:
            chain.append(int(alive.argmax()))
        tip = chain[-1]
        nearest = int(apart[tip].argmin())
        # Of equally near ones the chain goes back, so that it cannot run in circles.
        if len(chain) > 1 and apart[tip, chain[-2]] <= apart[tip, nearest]:
            chain.pop()
            other = chain.pop()
            merges.append((float(apart[tip, other]), other, tip))
            _join(apart, sizes, other, tip)
            alive[tip] = False
        else:
            chain.append(nearest)
    return merges


def _join(apart: Floats, sizes: Floats, kept: int, gone: int) -> None:
    """Put `gone` into `kept` by the formula of Lance and Williams for Ward's method."""
    near, far, between = apart[kept], apart[gone], apart[kept, gone]
    both = sizes[kept] + sizes[gone]
    with numpy.errstate(invalid="ignore"):  # infinity less infinity, where a row meets itself or one that is gone
        joined = ((sizes[kept] + sizes) * near + (sizes[gone] + sizes) * far - sizes * between) / (both + sizes)
    joined[~numpy.isfinite(joined)] = numpy.inf
    joined[kept] = joined[gone] = numpy.inf
    apart[kept, :] = apart[:, kept] = joined
    apart[gone, :] = apart[:, gone] = numpy.inf
    sizes[kept] = both
