"""Pictures already decoded: a conversation sends each of its pictures again with every turn."""

from __future__ import annotations

import dataclasses
import hashlib

from onsight.core.byte_cache import ByteCache
from onsight.core.messages import Image, ImageOptions
from onsight.media.containers import PictureFile
from onsight.media.decode_child import DecodeChild
from onsight.media.image import decode_image


class DecodedPictures:
    """Decodes pictures, and keeps the last ones, by the content of their files."""

    def __init__(self, max_bytes: int, child: DecodeChild) -> None:
        """`max_bytes` of pixels are kept, 3 a pixel; 0 keeps nothing. `child` decodes what is not decoded here."""
        self._child = child
        self.cache: ByteCache[Image] = ByteCache(max_bytes)

    def decode(self, file: PictureFile, options: ImageOptions) -> Image:
        """As `decode_image`; the same file again is not decoded again. Not for the event loop."""
        key = _content(file)
        known = self.cache.find(key)
        if known is None:
            known = decode_image(file, options, self._child)
            self.cache.keep(key, known, len(known.pixels))
        return known if known.options == options else dataclasses.replace(known, options=options)


def _content(file: PictureFile) -> str:
    """SHA-256 (hex) of all that the pixels depend on."""
    digest = hashlib.sha256(f"{file.format} {file.size} {file.orientation} {file.key} {file.depth}:".encode())
    digest.update(file.drawing)
    return digest.hexdigest()
