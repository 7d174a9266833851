"""The pictures of the page in its document: all there, all shown, and small."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 3_000_000


def test_the_page_is_shown_in_every_language_and_look_and_its_pictures_are_small() -> None:
    pictures = {path.name: path.stat().st_size for path in (DOCS / "images" / "page").iterdir()}
    named = re.findall(r'src="images/page/([^"]+)"', (DOCS / "page.md").read_text("utf-8"))
    assert sorted(named) == sorted(pictures)
    tabs = {name.partition("_")[0] for name in pictures}
    looks = [
        f"{language}_{light}_{size}"
        for language in ("en", "ru")
        for light in ("light", "dark")
        for size in ("wide", "phone")
    ]
    assert set(pictures) == {f"{tab}_{look}.png" for tab in tabs for look in looks}
    assert len(tabs) == 6
    assert sum(pictures.values()) < MOST_BYTES
