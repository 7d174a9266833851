"""The page's own files in the package: its words, its style, its script, its example pictures."""

from __future__ import annotations

from importlib import resources


def packaged(name: str) -> str:
    """The text of `onsight/ui/NAME`."""
    return (resources.files("onsight.ui") / name).read_text("utf-8")


def examples() -> tuple[str, ...]:
    """The paths of the example pictures, in their order."""
    folder = resources.files("onsight.ui") / "static" / "examples"
    return tuple(sorted(str(file) for file in folder.iterdir() if file.name.endswith(".png")))
