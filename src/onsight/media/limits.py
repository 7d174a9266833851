"""How much media one request may bring, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onsight.core.errors import StartError

# Where Pillow itself refuses a picture as a bomb, whatever our own limit is.
_MOST_PIXELS = 178_000_000

RemoteMedia = Literal["public", "off", "allow-list"]


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What the media door lets in.

    `remote`: fetch from public addresses only, from nowhere, or from `allowed_hosts` only (which may be internal).
    `allowed_ports`: ports of remote hosts. `max_bytes`, `max_request_bytes`: encoded bytes of one picture, of all
    in a request. `max_pixels`, `max_request_pixels`: px of one picture, of all in a request; read from headers
    before anything is decoded. `min_side`: under 4 px an image processor can mistake a side of 1 or 3 for the
    colour channels. `max_aspect`: longer side over shorter; 200 is also Qwen2.5-VL's own limit. `fetch_timeout_s`:
    for all remote pictures of one request together, redirects and bodies included. `decode_workers`: threads that
    read pictures.
    """

    remote: RemoteMedia = "public"
    allowed_hosts: tuple[str, ...] = ()
    allowed_ports: tuple[int, ...] = (80, 443)
    max_bytes: int = 20 << 20
    max_request_bytes: int = 64 << 20
    max_pixels: int = 40_000_000
    max_request_pixels: int = 120_000_000
    max_images: int = 32
    min_side: int = 4
    max_aspect: float = 200.0
    fetch_timeout_s: float = 15.0
    max_redirects: int = 3
    decode_workers: int = 2

    @property
    def byte_limit(self) -> str:
        """`max_bytes` as an error text says it."""
        return f"{self.max_bytes / (1 << 20):.3g} MB (media.max_mb)"

    def __post_init__(self) -> None:
        if self.allowed_hosts and self.remote != "allow-list":
            raise StartError(f'media.allowed_hosts needs media.remote = "allow-list"; it is "{self.remote}"')
        if self.remote == "allow-list" and not self.allowed_hosts:
            raise StartError('media.remote = "allow-list" needs at least one name in media.allowed_hosts')
        if self.max_pixels > _MOST_PIXELS:
            raise StartError(f"media.max_pixels is {self.max_pixels}; at most {_MOST_PIXELS} can be decoded")
        if self.decode_workers < 1:
            raise StartError(f"media.decode_workers is {self.decode_workers}; use 1 or more")
