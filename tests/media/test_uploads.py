"""The page's uploads: only what lies in their folder is read, and not more than the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onsight.core.errors import InvalidMedia, TooLarge
from onsight.core.messages import ImageRef, VideoRef
from onsight.media.uploads import Uploads, as_reference
from tests.media.clips import clip, gif
from tests.media.pictures import plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    inside = tmp_path / "uploads"
    inside.mkdir()
    (inside / "picture.png").write_bytes(b"pixels")
    return inside


def test_an_upload_is_read(folder: Path) -> None:
    assert Uploads(folder, 6).read(str(folder / "picture.png")) == b"pixels"


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "gone.png", "", ".", "a\0b"])
def test_nothing_else_is(folder: Path, name: str) -> None:
    with pytest.raises(InvalidMedia) as caught:
        Uploads(folder, 1000).read(name if name.startswith("/") else str(folder / name))
    assert caught.value.code == "upload_gone"


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.txt")
    with pytest.raises(InvalidMedia):
        Uploads(folder, 1000).read(str(folder / "link.png"))


def test_a_large_one_is_refused_with_the_limit(folder: Path) -> None:
    with pytest.raises(TooLarge, match="6 bytes"):
        Uploads(folder, 5).read(str(folder / "picture.png"))


def test_the_oldest_go_until_the_others_are_few_enough_and_our_own_stay(folder: Path) -> None:
    for age, name in enumerate(("examples/screen.png", "a/old.png", "c/older.png", "b/new.png")):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1000 - age * (age < 3), 1000 - age * (age < 3)))
    uploads = Uploads(folder, 1000)

    def left(most_bytes: int) -> set[str]:
        uploads.drop_oldest(most_bytes, folder / "examples")
        return {path.name for path in folder.rglob("*.png")}

    everything = {"screen.png", "older.png", "old.png", "new.png", "picture.png"}
    assert left(36) == everything
    assert left(35) == everything - {"older.png"}
    assert left(16) == {"screen.png", "new.png", "picture.png"}
    assert left(0) == {"screen.png"}


@pytest.mark.parametrize(("data", "kind"), [(plain(), ImageRef), (gif(), ImageRef), (clip(frames=2), VideoRef)])
def test_a_files_bytes_say_what_it_is(data: bytes, kind: type) -> None:
    assert isinstance(as_reference(data), kind)
