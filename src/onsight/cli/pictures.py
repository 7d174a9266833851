"""Which pictures a command line means: files, folders, patterns, URLs, and `-` for standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable
from pathlib import Path

from onsight.core.errors import StartError

STANDARD_INPUT = "-"

_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""What a folder's pictures are called; a file that is named itself may be called anything."""


def is_url(name: str) -> bool:
    """Whether `name` is for the server to fetch."""
    return name.lower().startswith(("http://", "https://", "data:"))


def name_pictures(given: Iterable[str], *, pdfs: bool = False) -> list[str]:
    """Every picture that is meant, each once: folders with all below them, by name; patterns as a shell reads them.

    `pdfs`: PDFs in a folder are meant too.

    Raises StartError for a folder or a pattern that holds no picture. A file that is not there is kept: it is reported
    when its turn comes, and the others go on.
    """
    endings = _ENDINGS | ({".pdf"} if pdfs else set())
    found: list[str] = []
    for name in given:
        if name == STANDARD_INPUT or is_url(name):
            found.append(name)
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file())
        elif path.exists() or not glob.has_magic(name):
            inside = [str(path)]
        else:
            inside = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not inside:
            raise StartError(f"{name} holds no picture ({', '.join(sorted(endings))})")
        found += inside
    return list(dict.fromkeys(found))


def read_picture(name: str) -> bytes:
    """The bytes of a file, or of standard input. Raises OSError."""
    if name == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    return Path(name).read_bytes()
