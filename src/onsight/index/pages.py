"""A page that is kept: which page of which file it is, and its vectors."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from onsight.core.embedding import Embedding
from onsight.core.geometry import Size

_OURS = uuid.UUID("6f6e7369-6768-7470-a6e5-000000000001")
"""Where the names of our pages' ids live."""


@dataclass(frozen=True, slots=True)
class Page:
    """`file`: its path; `digest`: SHA-256 (hex) of its bytes. `page`: of a PDF, from 1; None for a picture. `size`: px.

    `model`: the name of the model that made its vectors; those of another one mean nothing beside them.
    """

    file: str
    page: int | None
    digest: str
    size: Size
    model: str

    @property
    def id(self) -> str:
        """The same for the same page of the same file, whatever it holds, so that a changed one replaces itself."""
        return str(uuid.uuid5(_OURS, f"{self.page or 0} {self.file}"))


@dataclass(frozen=True, slots=True)
class KeptPage(Page):
    """A page with its vectors."""

    embedding: Embedding
