"""Files that visitors of the page uploaded: read by name from one folder of our own, and from nowhere else; the oldest
go where they are too many."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from onsight.core.errors import InvalidMedia, TooLarge
from onsight.core.messages import ImageRef, VideoRef
from onsight.core.pages import Pages
from onsight.media.video_files import video_format


class Uploads:
    """Reads what lies under `folder`, and bounds it; of a file that has more than `max_bytes` nothing is read."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder.resolve()
        self._max_bytes = max_bytes

    def read(self, name: str) -> bytes:
        """The bytes of the upload `name`, a path as the page knows it; not for the event loop.

        Raises InvalidMedia for any other file and for an upload that was removed, TooLarge.
        """
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise _gone() from None
        if not path.is_relative_to(self._folder) or not path.is_file():
            raise _gone()
        size = path.stat().st_size
        if size > self._max_bytes:
            raise TooLarge(f"the file has {size} bytes; the limit is {self._max_bytes >> 20} MB (media.max_mb)")
        return path.read_bytes()

    def drop_oldest(self, most_bytes: int, spared: Path) -> None:
        """Remove the oldest files until the others have `most_bytes` together, whatever put them there; what lies in
        `spared` is neither counted nor removed."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for path in map(Path(folder).joinpath, names if Path(folder) != spared.resolve() else ()):
                with suppress(FileNotFoundError):  # another may be doing the same
                    state = path.lstat()
                    found.append((state.st_mtime_ns, path, state.st_size))
        left_bytes = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if left_bytes <= most_bytes:
                break
            path.unlink(missing_ok=True)
            left_bytes -= size


def as_reference(data: bytes) -> ImageRef | VideoRef:
    """A file's bytes as a video, or as a picture or all pages of a PDF; a GIF is a picture, its first frame."""
    return VideoRef(data) if video_format(data) in ("MP4", "WEBM") else ImageRef(data, pages=Pages())


def _gone() -> InvalidMedia:
    return InvalidMedia("the uploaded file is no longer here; upload it again", code="upload_gone")
