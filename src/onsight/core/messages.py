"""What is said to a model: messages made of text and pictures.

A `Draft` is what a client wrote (pictures named by URL or sent as bytes); a `Message` is what an engine reads
(pictures as checked
pixels). Only `onsight.tasks` turns the one into the other, through the media door.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from onsight.core.tools import ToolCall

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain characters. Nothing in it is ever read as a placeholder or a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How closely a picture is looked at; each is honoured by the family or refused by name.

    `detail`: "low" asks for the family's cheapest view, "high" for its finest, "auto" for its default.
    `min_pixels`, `max_pixels`: bounds on the area (px) of the resized picture that the model sees.
    """

    detail: Detail = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None


DEFAULT_IMAGE_OPTIONS = ImageOptions()


@dataclass(frozen=True, slots=True)
class Image:
    """A checked picture, upright and without transparency.

    `pixels`: RGB, 8 bits a channel, row-major, `height * width * 3` bytes. `width`, `height`: px of the upright
    original.
    `digest`: SHA-256 (hex) over size and pixels, the picture's identity in every cache.
    """

    pixels: bytes
    width: int
    height: int
    digest: str
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS

    @staticmethod
    def of(pixels: bytes, width: int, height: int, options: ImageOptions = DEFAULT_IMAGE_OPTIONS) -> Image:
        """Wrap raw RGB bytes and compute their digest. Raises ValueError when the byte count does not fit the size."""
        if len(pixels) != width * height * 3:
            raise ValueError(f"{len(pixels)} bytes are not {width}x{height} RGB pixels")
        # The size is hashed too: 30x150 and 150x30 of one colour are the same bytes but not the same picture.
        digest = hashlib.sha256(f"{width}x{height}:".encode())
        digest.update(pixels)
        return Image(pixels, width, height, digest.hexdigest(), options)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture as a client named it: a URL (http, https, data:) or the encoded file's bytes.

    `param` is where it stood in the request, for error texts.
    """

    source: str | bytes
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A message as a client wrote it; its pictures are not fetched yet.

    Calls stand in an assistant's message; `call_id` names the call that a tool's message answers.
    """

    role: Role
    parts: tuple[Text | ImageRef | ToolCall, ...]
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as an engine reads it; parts keep the client's order. See `Draft`."""

    role: Role
    parts: tuple[Text | Image | ToolCall, ...]
    call_id: str | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))
