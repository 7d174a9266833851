"""A conversation in the pieces that a chat template is given: its own words, people's text, pictures."""

from __future__ import annotations

from dataclasses import dataclass

from onsight.core.messages import Image, Role, Text, Video
from onsight.core.tools import ToolCall


@dataclass(frozen=True, slots=True)
class TemplateText:
    """Words of the template itself: special tokens count in them."""

    text: str


Piece = TemplateText | Text | Image | Video


@dataclass(frozen=True, slots=True)
class VideoWords:
    """How a video is written: `text` stands where it goes, in `template` (Jinja) whenever there is one; None is the
    template that is followed anyway."""

    text: str
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `calls` are for a template that writes calls itself."""

    role: Role
    pieces: tuple[Piece, ...]
    calls: tuple[ToolCall, ...] = ()
