"""Inputs of like length share a forward: so little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence

BATCH_TOKENS = 16_384
"""About twenty pages."""
_PADDED = 1.25
"""A forward's longest input is at most so many times as long as its shortest."""


def grouped(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of `lengths`, those of like length together, each group within the bounds of one forward."""
    groups: list[list[int]] = []
    shortest = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        length = lengths[index]
        if not groups or length > _PADDED * shortest or (len(groups[-1]) + 1) * length > batch_tokens:
            groups.append([])
            shortest = length
        groups[-1].append(index)
    return groups
