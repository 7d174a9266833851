"""How much media one request may bring, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onsight.core.errors import InvalidMedia, InvalidRequest, StartError
from onsight.core.geometry import Size
from onsight.core.messages import ImageOptions

# Where Pillow itself refuses a picture as a bomb, whatever our own limit is.
_MOST_PIXELS = 178_000_000

RemoteMedia = Literal["public", "off", "allow-list"]
Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What the media door lets in.

    `remote`: fetch from public addresses only, from nowhere, or from `allowed_hosts` only (which may be internal).
    `allowed_ports`: ports of remote hosts. `max_bytes`, `max_request_bytes`: encoded bytes of one picture, of all
    in a request. `max_pixels`, `max_request_pixels`: px of one picture, of all in a request; read from headers
    before anything is decoded. `min_side`: under 4 px an image processor can mistake a side of 1 or 3 for the
    colour channels. `max_aspect`: longer side over shorter; 200 is also Qwen2.5-VL's own limit. `fetch_timeout_s`:
    for all remote pictures of one request together, redirects and bodies included, and for all its videos.
    `decode_workers`: threads that read pictures and videos. `decoded_bytes`: pixels kept of the last pictures.

    Of videos, `max_pixels`, `min_side` and `max_aspect` hold for a frame. `max_video_bytes`: encoded bytes of one
    (`max_request_bytes` of all). `max_video_s`: seconds that one lasts. `max_video_frames`: frames looked at in one.
    `max_video_pixels`: px of all frames looked at in one request. `video_decode_s`: seconds that decoding one may take.

    A page of a PDF counts as a picture, and its file's bytes as one picture's. `pdf_dpi`: px an inch that a page is
    drawn at, fewer where the limits and the request's own `max_pixels` allow no more px. `pdf_draw_s`: seconds of
    processor time that drawing one PDF's pages may take.
    """

    remote: RemoteMedia = "public"
    allowed_hosts: tuple[str, ...] = ()
    allowed_ports: tuple[int, ...] = (80, 443)
    max_bytes: int = 20 << 20
    max_request_bytes: int = 64 << 20
    max_pixels: int = 40_000_000
    max_request_pixels: int = 120_000_000
    max_images: int = 32
    max_videos: int = 4
    max_video_bytes: int = 40 << 20
    max_video_s: float = 3600.0
    max_video_frames: int = 128
    max_video_pixels: int = 150_000_000
    video_decode_s: float = 20.0
    pdf_dpi: int = 180
    pdf_draw_s: float = 20.0
    min_side: int = 4
    max_aspect: float = 200.0
    fetch_timeout_s: float = 15.0
    max_redirects: int = 3
    decode_workers: int = 2
    decoded_bytes: int = 128 << 20

    def bytes_of(self, kind: Kind) -> int:
        """Most encoded bytes of one picture or video."""
        return self.max_bytes if kind == "image" else self.max_video_bytes

    def byte_limit(self, kind: Kind) -> str:
        """`bytes_of` as an error text says it."""
        setting = "media.max_mb" if kind == "image" else "media.max_video_mb"
        return f"{self.bytes_of(kind) / (1 << 20):.3g} MB ({setting})"

    def __post_init__(self) -> None:
        if self.allowed_hosts and self.remote != "allow-list":
            raise StartError(f'media.allowed_hosts needs media.remote = "allow-list"; it is "{self.remote}"')
        if self.remote == "allow-list" and not self.allowed_hosts:
            raise StartError('media.remote = "allow-list" needs at least one name in media.allowed_hosts')
        if self.max_pixels > _MOST_PIXELS:
            raise StartError(f"media.max_pixels is {self.max_pixels}; at most {_MOST_PIXELS} can be decoded")
        if self.decode_workers < 1:
            raise StartError(f"media.decode_workers is {self.decode_workers}; use 1 or more")

    def check_options(self, options: ImageOptions, param: str | None) -> None:
        """No picture may be asked to be seen larger than one may be sent. Raises InvalidRequest; `param`: the
        picture's."""
        for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
            if value is not None and value > self.max_pixels:
                raise InvalidRequest(
                    f"{name} is {value}; the most is {self.max_pixels}, as of a picture that is sent"
                    " (media.max_pixels): lower it, or leave it out",
                    param=name if param is None else f"{param}.{name}",
                )

    def check_size(self, size: Size, subject: str) -> None:
        """Hold a picture's or a frame's size against the limits. Raises InvalidMedia that begins with `subject`."""
        width, height = size.width, size.height
        said = f"{subject} {width}x{height} px"
        if width * height > self.max_pixels:
            raise InvalidMedia(f"{said}; the limit is {self.max_pixels / 1e6:g} Mpx (media.max_pixels)")
        if min(width, height) < self.min_side:
            raise InvalidMedia(f"{said}; each side needs at least {self.min_side} px")
        if max(width, height) > self.max_aspect * min(width, height):
            raise InvalidMedia(f"{said}; the longer side may be at most {self.max_aspect:g} times the shorter")
