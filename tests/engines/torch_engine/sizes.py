"""Thirty odd picture sizes, all of which the media door lets in (least side 4 px, at most 200 times longer)."""

from __future__ import annotations

SIZES: tuple[tuple[int, int], ...] = (
    # tiny, and as thin as the door allows
    (4, 4), (4, 800), (800, 4), (5, 7), (13, 13), (27, 29), (4, 55), (200, 5),
    # on and beside the edges of tiles, patches and crops
    (28, 28), (70, 42), (335, 336), (336, 337), (511, 512), (513, 512), (559, 561), (560, 560), (1121, 560),
    # tall and wide
    (50, 800), (2000, 100), (3000, 31), (90, 1750), (640, 480), (386, 290), (1300, 876),
    # screens and pages, both ways round
    (1920, 1080), (1080, 1920), (1366, 768), (1240, 1754), (3840, 2160), (2160, 3840),
)  # fmt: skip

FEW = ((800, 4), (5, 7), (513, 512), (70, 42))
"""For the default suite."""
