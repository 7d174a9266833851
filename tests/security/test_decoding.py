"""A decoder that dies costs its own request an answer that is true; every other request is answered."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.api.conftest import until
from tests.cli.conftest import RunCommand
from tests.media.pictures import data_url, encoded, plain
from tests.media.test_decode_child import SLOW, processes
from tests.security.doors import House
from tests.security.test_every_door import NOISE


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path).open() as house:
        yield house


def copies() -> list[psutil.Process]:
    found = []
    for process in processes():
        with suppress(psutil.NoSuchProcess):  # another test's, which has just ended
            found += process.children()
    return found


def is_at_work(copy: psutil.Process) -> bool:
    """Whether it has taken so long that it must be in the midst of its file."""
    with suppress(psutil.NoSuchProcess):
        return bool(copy.cpu_times().user > 0.3)
    return False


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGKILL, 503, "ended from outside; send the request again"),
        (signal.SIGSEGV, 400, "cannot decode PDF"),
    ],
)
async def test_a_decoder_that_dies_takes_one_request_along(
    house: House, number: signal.Signals, status: int, words: str
) -> None:
    slow = data_url(SLOW, "application/pdf")
    asked = asyncio.create_task(house.bench.post("/v1/ocr", {"image": slow}))
    # The second look is the one that takes long.
    await until(lambda: any(map(is_at_work, copies())))
    fast = await house.bench.post("/v1/caption", {"image": data_url(plain("WEBP"))})
    assert fast.status_code == 200
    for copy in copies():
        copy.send_signal(number)
    answer = await asked
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert ("retry-after" in answer.headers) == (status == 503)
    assert (await house.bench.post("/v1/caption", {"image": data_url(plain("TIFF"))})).status_code == 200
    assert house.admission.taken == 0


async def test_the_process_for_strangers_files_may_be_killed_at_any_time(house: House) -> None:
    for form in ("WEBP", "BMP", "GIF"):
        assert (await house.bench.post("/v1/caption", {"image": data_url(plain(form))})).status_code == 200
        for process in processes():
            process.kill()


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "GIF"])
def test_the_command_lines_files_are_opened_apart_too(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("ONSIGHT_ENGINE", "fake")
    before = processes()
    good, cut = tmp_path / "good", tmp_path / "cut"
    good.write_bytes(encoded(NOISE, form))
    cut.write_bytes(good.read_bytes()[:2000])
    done = run("chat", "what?", "-a", str(cut))
    assert (done.code, "cannot decode image" in done.err) == (2, True), done.err
    assert run("chat", "what?", "-a", str(good)).code == 0
    assert set(processes()) <= set(before)
