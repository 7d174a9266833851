"""The page's own files in the package: its words, its style, its script, its example pictures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib import resources
from pathlib import Path


def packaged(name: str) -> str:
    """The text of `onsight/ui/NAME`."""
    return (resources.files("onsight.ui") / name).read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Examples:
    """Pictures of our own that were laid out: screens to ask about, pages to search."""

    screens: tuple[Path, ...] = ()
    pages: tuple[Path, ...] = ()


NO_EXAMPLES = Examples()


def lay_out_examples(folder: Path) -> Examples:
    """Put the example pictures into `folder`, as if somebody had uploaded them; where they are now, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    laid = []
    for file in (resources.files("onsight.ui") / "static" / "examples").iterdir():
        if file.name.endswith(".png"):
            (folder / file.name).write_bytes(file.read_bytes())
            laid.append(folder / file.name)
    screens, pages = (tuple(sorted(one for one in laid if one.name.startswith(kind))) for kind in ("screen", "page"))
    return Examples(screens, pages)


def example_url(example: Path) -> str:
    """A laid out example as a data: URL, to show it."""
    return "data:image/png;base64," + base64.b64encode(example.read_bytes()).decode()
