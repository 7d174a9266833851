"""Files are opened by a process that may be killed, run on or run out of memory: that costs one answer and no more."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pillow

from onsight.core.errors import InvalidMedia, Unavailable
from onsight.core.messages import Image, ImageOptions
from onsight.media.decode_child import DecodeChild
from onsight.media.image import decode_image, draw_picture, read_header
from onsight.media.limits import MediaLimits
from onsight.media.verdict import Refused, Verdict
from tests.media.papers import page, paper, pdf
from tests.media.pictures import encoded, pixel, plain
from tests.media.test_pdf import LONG
from tests.servers import wait_until

SLOW = pdf([page(LONG)]).replace(b"<< /Length", b"<< /Filter /FlateDecode /Length")
"""A PDF whose page takes many seconds to draw."""


@pytest.fixture
def child() -> Iterator[DecodeChild]:
    child = DecodeChild()
    yield child
    child.close()


def tell(child: DecodeChild, data: bytes) -> object:
    """How many pages a PDF has."""
    return child.facts("tell a pdf", {"spans": (), "most": 9}, data, 20)["total"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts by /proc")
def test_without_a_free_file_descriptor_it_is_nobodys_fault_and_none_is_lost(
    child: DecodeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, data, pipe = open_files(), paper(), os.pipe
    left = iter(range(2))

    def exhausted(*given: object, **more: object) -> tuple[int, int]:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "Too many open files")
        return pipe()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", exhausted)
        with pytest.raises(Unavailable, match="Too many open files"):
            tell(child, data)
    with monkeypatch.context() as patched:
        patched.setattr("subprocess.Popen", exhausted)
        with pytest.raises(Unavailable, match="Too many open files"):
            tell(child, data)
    assert open_files() == before
    assert tell(child, data) == 3


def draw_slowly(child: DecodeChild, cpu_s: float = 60) -> bytes:
    return child.ask("draw a pdf", {"pages": [(1, 72, 144)]}, SLOW, cpu_s, lambda answer: answer.read())


def processes() -> list[psutil.Process]:
    """Those that open files for this test run."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "decode_process.py" in " ".join(one.cmdline()):
                found.append(one)
    return found


@contextmanager
def at_work(child: DecodeChild) -> Iterator[tuple[psutil.Process, psutil.Process, Future[bytes]]]:
    """The process, its copy that draws something slow, and what comes of that."""
    assert tell(child, paper()) == 3
    (process,) = processes()
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(draw_slowly, child)
        wait_until(lambda: len(process.children()) == 1)
        yield process, process.children()[0], drawn


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_copy_that_is_killed_from_outside_is_nobodys_fault(child: DecodeChild, number: signal.Signals) -> None:
    with at_work(child) as (process, copy, drawn):
        copy.send_signal(number)
        with pytest.raises(Unavailable, match="ended from outside; send the request again"):
            drawn.result()
        assert tell(child, paper()) == 3
        assert processes() == [process]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_decoder_that_crashes_is_the_files_fault(child: DecodeChild, number: signal.Signals) -> None:
    with at_work(child) as (_, copy, drawn):
        copy.send_signal(number)
        with pytest.raises(Refused) as caught:
            drawn.result()
        assert caught.value.verdict is Verdict.BROKEN
        assert tell(child, paper()) == 3


def test_a_process_that_was_killed_is_started_again(child: DecodeChild) -> None:
    with at_work(child) as (process, copy, drawn):
        process.kill()
        wait_until(lambda: tell(child, paper()) == 3)
        assert processes() != [process]
        copy.kill()
        with pytest.raises(Unavailable):
            drawn.result()


def test_a_copy_that_only_waits_is_ended_by_the_clock() -> None:
    child = DecodeChild(wait_times=1)
    try:
        assert tell(child, paper()) == 3
        (process,) = processes()
        with ThreadPoolExecutor(1) as pool:
            drawn = pool.submit(draw_slowly, child, 2)
            wait_until(lambda: len(process.children()) == 1)
            process.children()[0].suspend()
            with pytest.raises(Refused) as caught:
                drawn.result()
        assert caught.value.verdict is Verdict.SLOW
    finally:
        child.close()


def test_a_copy_that_computes_on_is_ended_by_its_processor_time(child: DecodeChild) -> None:
    with pytest.raises(Refused) as caught:
        draw_slowly(child, 1)
    assert caught.value.verdict is Verdict.SLOW


def test_a_file_that_takes_too_much_memory_is_refused_and_the_next_is_opened() -> None:
    child = DecodeChild(memory_bytes=400 << 20)
    try:
        large = encoded(Pillow.new("RGBA", (10_000, 10_000)), "TIFF", compression="tiff_deflate")
        limits = MediaLimits(max_pixels=100_000_000)
        with pytest.raises(InvalidMedia, match="decoding the image takes too much memory"):
            decode_image(read_header(large, limits), ImageOptions(), child)
        assert decode_image(read_header(plain("TIFF"), limits), ImageOptions(), child).width == 20
    finally:
        child.close()


@pytest.mark.parametrize("form", ["WEBP", "GIF", "BMP", "TIFF"])
def test_apart_a_picture_has_the_pixels_that_it_has_here(child: DecodeChild, form: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("WEBP", "TIFF") else {}
    picture = Pillow.linear_gradient("L").resize((900, 700)).convert("RGBA" if form in ("WEBP", "TIFF") else "RGB")
    file = read_header(encoded(picture, form, **options), MediaLimits())
    here = io.BytesIO()
    draw_picture(file, here)
    assert decode_image(file, ImageOptions(), child).pixels == here.getvalue()
    assert len(processes()) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_usual_pictures_need_no_process(child: DecodeChild, form: str) -> None:
    decode_image(read_header(plain(form), MediaLimits()), ImageOptions(), child)
    assert processes() == []


def test_many_threads_are_answered_each_with_its_own(child: DecodeChild) -> None:
    colours = [(200, place, 255 - place) for place in range(24)]

    def look(colour: tuple[int, int, int]) -> Image:
        file = encoded(Pillow.new("RGB", (300, 300), colour), "BMP")
        return decode_image(read_header(file, MediaLimits()), ImageOptions(), child)

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(look, colours))
    assert [pixel(image, 150, 150) for image in seen] == colours
    assert len(processes()) == 1


def test_no_descriptor_and_no_copy_stays(child: DecodeChild) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    tell(child, paper())
    (process,) = processes()
    wait_until(lambda: not process.children())
    before = files(), process.num_fds()
    for _ in range(5):
        tell(child, paper())
        with pytest.raises(Refused):
            tell(child, paper()[:300])
    wait_until(lambda: (files(), process.num_fds(), process.children()) == (*before, []))


def test_the_process_knows_no_key_and_ends_with_the_server(child: DecodeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONSIGHT_API_KEY", "sesame")
    with at_work(child) as (process, copy, drawn):
        assert b"sesame" not in Path(f"/proc/{process.pid}/environ").read_bytes()
        copy.suspend()  # so that it does not end by itself
        child.close()
        with pytest.raises(Unavailable):
            drawn.result()
        assert not process.is_running()
        wait_until(lambda: not copy.is_running() or copy.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(Unavailable, match="stopping"):
        tell(child, paper())


def test_an_answer_nobody_reads_holds_nobody_up(child: DecodeChild) -> None:
    with pytest.raises(Refused):
        child.ask("draw a pdf", {"pages": [(1, 2000, 2000)]}, paper(), 20, lambda answer: answer.read(10))
    assert tell(child, paper()) == 3
