"""What is uploaded to the page: a file, counted, and forgotten in the end; nothing else is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from onsight.api.rates import Rate
from onsight.media.door import MediaDoor
from tests.ui.conftest import furnished
from tests.ui.test_page import KEY, opened

pytest.importorskip("gradio")


async def test_uploads_are_counted_and_the_oldest_make_room(tmp_path: Path) -> None:
    doors: list[MediaDoor] = []
    place = furnished(tmp_path / "office", doors).desk.place
    counted: list[str] = []
    rate = Rate("key", 3)

    def count(who: str) -> None:
        counted.append(who)
        rate.count(who)

    async with opened(replace(place, count=count, uploads_bytes=25), tmp_path / "uploads", KEY) as (client, folder):
        examples = set((folder / "examples").iterdir())
        await client.post("/ui/en/", data={"key": KEY})
        answers = []
        for name in "abcd":
            files = {"files": (f"{name}.png", name.encode() * 10, "image/png")}
            answers.append(await client.post("/ui/en/gradio_api/upload", files=files))
        left = {path.name for path in folder.rglob("?.png")}
        assert set((folder / "examples").iterdir()) == examples != set()
    doors[0].close()
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "20"
    assert counted == ["key"] * 4
    assert left == {"b.png", "c.png"}


UPLOAD = "/ui/en/gradio_api/upload"


async def test_gradios_books_of_uploads_hold_what_is_there_and_no_more(tmp_path: Path) -> None:
    from gradio import Blocks
    from gradio.routes import file_upload_statuses

    lists: dict[int, set[str]] = {}
    queue = Blocks.queue

    def noted(blocks: Blocks, *given: object, **named: object) -> Blocks:
        lists[id(blocks)] = blocks.upload_file_set
        return queue(blocks, *given, **named)

    doors: list[MediaDoor] = []
    place = furnished(tmp_path / "office", doors).desk.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blocks, "queue", noted)
        async with opened(replace(place, uploads_bytes=25), tmp_path / "uploads") as (client, folder):
            for name in "abcd":
                files = {"files": (f"{name}.png", name.encode() * 10, "image/png")}
                assert (await client.post(UPLOAD, files=files, params={"upload_id": name})).status_code == 200
            assert (await client.get("/ui/en/gradio_api/upload_progress?upload_id=e")).status_code == 404
            here = {str(path) for path in folder.rglob("?.png")}
            assert [one for one in lists.values() if one] == [here]
            assert {Path(name).name for name in here} == {"c.png", "d.png"}
            assert (file_upload_statuses._statuses, dict(file_upload_statuses._signals)) == ({}, {})
    doors[0].close()


def form(head: str, kind: str = "multipart/form-data; boundary=x") -> dict[str, object]:
    """A form whose one part has such a head."""
    return {"content": f"--x\r\n{head}\r\n\r\nhello\r\n--x--\r\n".encode(), "headers": {"content-type": kind}}


NAMED = 'Content-Disposition: form-data; name="files"; filename="a.png"'
NO_UPLOADS = (
    form('Content-Disposition: form-data; name="files"'),
    form('Content-Disposition: form-data; name="other"'),
    form("Content-Disposition: form-data"),
    form("Content-Type: image/png"),
    form(NAMED, "multipart/form-data"),
    form(NAMED, "multipart/form-data; boundary=y"),
    form(NAMED, "text/plain"),
    *(form(NAMED.replace("a.png", "\\ud800.png"), f"multipart/form-data; boundary=x; charset={name}")
      for name in ("unicode_escape", "idna", "punycode", "utf-8")),
)  # fmt: skip


async def test_what_is_no_upload_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    doors: list[MediaDoor] = []
    place = furnished(tmp_path / "office", doors).desk.place
    async with opened(place, tmp_path / "uploads") as (client, folder):
        before = {path for path in folder.rglob("*") if path.is_file()}

        async def told(sent: dict[str, object], **query: str) -> httpx.Response:
            return await client.post(UPLOAD, params=query, **sent)  # type: ignore[arg-type]

        for query in ({}, {"upload_id": "a"}):
            answers = [await told(one, **query) for one in NO_UPLOADS]
            assert [one.status_code for one in answers] == [400] * len(NO_UPLOADS), [one.text for one in answers]
        assert {path for path in folder.rglob("*") if path.is_file()} == before
        assert (await told(form(NAMED), upload_id="a")).status_code == 200
    doors[0].close()
