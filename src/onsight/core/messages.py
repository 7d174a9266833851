"""What is said to a model: messages made of text, pictures and videos.

A `Draft` is what a client wrote (pictures and videos named by URL or sent as bytes); a `Message` is what an engine
reads (checked pixels). Only `onsight.tasks` turns the one into the other, through the media door.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from onsight.core.geometry import Box, Size
from onsight.core.pages import Pages
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
    `digest`: SHA-256 (hex) over size and pixels, the picture's identity in every cache. `page`: which page of a PDF it
    is, from 1; None for a picture.
    """

    pixels: bytes
    width: int
    height: int
    digest: str
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS
    page: int | None = None

    @staticmethod
    def of(pixels: bytes, width: int, height: int, options: ImageOptions = DEFAULT_IMAGE_OPTIONS) -> Image:
        """Wrap raw RGB bytes and compute their digest. Raises ValueError when the byte count does not fit the size."""
        if len(pixels) != width * height * 3:
            raise ValueError(f"{len(pixels)} bytes are not {width}x{height} RGB pixels")
        # The size is hashed too: 30x150 and 150x30 of one colour are the same bytes but not the same picture.
        digest = hashlib.sha256(f"{width}x{height}:".encode())
        digest.update(pixels)
        return Image(pixels, width, height, digest.hexdigest(), options)

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    def cut_out(self, box: Box) -> Image:
        """The part of it in `box`, whole px inside the picture, as a picture of its own; not for the event loop."""
        left, top, right, bottom = (int(edge) for edge in (box.x1, box.y1, box.x2, box.y2))
        rows = (row * self.width for row in range(top, bottom))
        view = memoryview(self.pixels)
        pixels = b"".join(view[(row + left) * 3 : (row + right) * 3] for row in rows)
        return Image.of(pixels, right - left, bottom - top, self.options)


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """Which frames of a video are looked at: `fps` of them a second, `max_frames` at most; None leaves the model's
    own rule."""

    fps: float | None = None
    max_frames: int | None = None


DEFAULT_VIDEO_OPTIONS = VideoOptions()


@dataclass(frozen=True, slots=True)
class Video:
    """The frames of a checked video that are looked at, upright.

    `pixels`: one frame after another, each RGB, 8 bits a channel, row-major, `height * width * 3` bytes. `width`,
    `height`: px of the upright video. `timestamps`: seconds from the start, one a frame, ascending. `duration_s`: of
    the whole video. `digest`: SHA-256 (hex) over the file and what chose the frames, its identity in every cache.
    """

    pixels: bytes
    width: int
    height: int
    timestamps: tuple[float, ...]
    duration_s: float
    digest: str

    def __post_init__(self) -> None:
        """Raises ValueError when the byte count does not fit the frames, or there is none."""
        frames = len(self.timestamps)
        if not frames or len(self.pixels) != frames * self.width * self.height * 3:
            raise ValueError(f"{len(self.pixels)} bytes are not {frames} frames of {self.width}x{self.height} RGB px")

    @property
    def frames(self) -> tuple[memoryview, ...]:
        """Each frame's pixels; views, not copies."""
        size = self.width * self.height * 3
        view = memoryview(self.pixels)
        return tuple(view[start : start + size] for start in range(0, len(self.pixels), size))


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture as a client named it: a URL (http, https, data:) or the encoded file's bytes.

    `param` is where it stood in the request, for error texts. `pages`: where a PDF is as welcome as a picture, which of
    its pages, each of them a picture; None where only a picture will do.
    """

    source: str | bytes
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS
    param: str | None = None
    pages: Pages | None = None


@dataclass(frozen=True, slots=True)
class VideoRef:
    """A video as a client named it; see `ImageRef`."""

    source: str | bytes
    options: VideoOptions = DEFAULT_VIDEO_OPTIONS
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A message as a client wrote it; its pictures and videos are not fetched yet.

    Calls stand in an assistant's message; `call_id` names the call that a tool's message answers.
    """

    role: Role
    parts: tuple[Text | ImageRef | VideoRef | ToolCall, ...]
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message as an engine reads it; parts keep the client's order. See `Draft`."""

    role: Role
    parts: tuple[Text | Image | Video | ToolCall, ...]
    call_id: str | None = None

    @property
    def media(self) -> tuple[Image | Video, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image | Video))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def videos(self) -> tuple[Video, ...]:
        return tuple(part for part in self.parts if isinstance(part, Video))
