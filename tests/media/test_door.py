"""One door for all pictures of a request: in order, within the limits, and without holding up the event loop."""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from PIL import Image as Pillow

from onsight.core.errors import InvalidMedia, RequestError, TooLarge
from onsight.core.messages import Image, ImageOptions, ImageRef
from onsight.media.door import MediaDoor, MediaLimits
from tests.media.networks import Names, Network, reply
from tests.media.pictures import BLUE, GREEN, RED, data_url, encoded, pixel, plain


@contextmanager
def a_door(limits: MediaLimits | None = None, **rest: object) -> Iterator[MediaDoor]:
    door = MediaDoor(limits, **rest)
    try:
        yield door
    finally:
        door.close()


async def refusal(limits: MediaLimits, *sources: str | bytes) -> RequestError:
    refs = [ImageRef(source, param=f"images.{place}") for place, source in enumerate(sources)]
    with a_door(limits) as door, pytest.raises(RequestError) as caught:
        await door.open(refs)
    return caught.value


async def test_pictures_keep_their_order_and_their_options() -> None:
    options = ImageOptions(detail="low", max_pixels=5000)
    sources = [encoded(Pillow.new("RGB", (600 // (n + 1), 30), colour)) for n, colour in enumerate((RED, GREEN, BLUE))]
    network = Network(reply(sources[1]))
    refs = [ImageRef(sources[0], options), ImageRef("http://a.example/"), ImageRef(data_url(sources[2]))]
    with a_door(resolver=Names(a_example=[["8.8.8.8"]]), network=network) as door:
        images = await door.open(refs)
    assert [pixel(image, 0, 0) for image in images] == [RED, GREEN, BLUE]
    assert [image.width for image in images] == [600, 300, 200]
    assert [image.options for image in images] == [options, ImageOptions(), ImageOptions()]


async def test_the_digest_is_the_cores_own() -> None:
    with a_door() as door:
        (image,) = await door.open([ImageRef(plain())])
    assert image == Image.of(bytes(RED) * 200, 20, 10)


def test_the_size_of_what_came_along_is_known_from_its_first_bytes() -> None:
    large = {form: plain(form, (300, 200)) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}
    long = large["PNG"][:-12] + bytes(1 << 20)
    sources = [*large.values(), data_url(large["PNG"]), data_url(long), long]
    others = [b"%PDF-1.7", b"", "data:image/png;base64,%%%%", "data:nothing", "https://a.example/x.png", "file:///x"]
    with a_door(MediaLimits(max_images=12)) as door:
        assert [door.known_pixels([ImageRef(source)]) for source in sources] == [60_000] * 8
        assert [door.known_pixels([ImageRef(source)]) for source in others] == [0] * 6
        assert door.known_pixels([ImageRef(large["PNG"])] * 1000) == 12 * 60_000
    with a_door(MediaLimits(max_pixels=59_999)) as door:
        assert door.known_pixels([ImageRef(large["PNG"])]) == 0, "what is refused anyway is not counted"


async def test_no_references_are_no_pictures() -> None:
    with a_door() as door:
        assert await door.open([]) == ()


async def test_too_many_pictures_are_refused_before_any_is_read() -> None:
    error = await refusal(MediaLimits(max_images=2), b"", b"", b"")
    assert isinstance(error, InvalidMedia)
    assert (error.message, error.param) == ("the request has 3 images; the limit is 2 (media.max_images)", "images.2")


async def test_too_many_bytes_in_one_or_in_all_are_refused() -> None:
    error = await refusal(MediaLimits(max_bytes=1 << 20), plain(), bytes(2 << 20))
    assert isinstance(error, TooLarge)
    assert (error.message, error.param) == ("the image has 2097152 bytes; the limit is 1 MB (media.max_mb)", "images.1")
    limits = MediaLimits(max_bytes=100_000, max_request_bytes=150_000)
    picture = encoded(Pillow.frombytes("RGB", (150, 150), random.Random(1).randbytes(67_500)))
    assert isinstance(await refusal(limits, *[picture] * 3), TooLarge)


async def test_the_pixels_of_a_request_are_counted_before_any_picture_is_decoded() -> None:
    cut = plain("PNG", (1000, 1000))[:60]  # its header is whole: decoding it would say that it is cut short
    error = await refusal(MediaLimits(max_request_pixels=1_500_000), cut, cut)
    assert error.message == (
        "the request's images have 2.0 Mpx together; the limit is 1.5 Mpx (media.max_request_pixels)"
    )


async def test_each_refusal_names_its_own_reference() -> None:
    assert (await refusal(MediaLimits(), plain(), b"nonsense", plain())).param == "images.1"
    assert (await refusal(MediaLimits(), plain(), plain("PNG", (64, 64))[:70])).param == "images.1"
    assert (await refusal(MediaLimits(), plain(), "file:///etc/passwd")).param == "images.1"


async def test_a_refusal_leaves_the_door_open_for_others() -> None:
    with a_door() as door:
        both = await asyncio.gather(
            door.open([ImageRef(b"nonsense")]), door.open([ImageRef(plain())]), return_exceptions=True
        )
        assert isinstance(both[0], InvalidMedia)
        assert (await door.open([ImageRef(plain())])) == both[1]


async def slow_moments(refs: list[ImageRef]) -> float:
    """The longest wait of the event loop while the pictures are read, but for its worst tenth, in seconds."""
    with a_door(MediaLimits(max_request_bytes=1 << 30)) as door:
        work = asyncio.create_task(door.open(refs))
        waits: list[float] = []
        while not work.done():
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            waits.append(time.perf_counter() - began)
        assert len(await work) == len(refs)
    return sorted(waits)[int(len(waits) * 0.9)]


async def test_the_event_loop_answers_while_eight_4k_pictures_are_read() -> None:
    small = Pillow.frombytes("RGB", (240, 135), random.Random(1).randbytes(240 * 135 * 3))
    picture = encoded(small.resize((3840, 2160), Pillow.Resampling.BILINEAR), compress_level=1)
    refs = [ImageRef(picture)] * 4 + [ImageRef(data_url(picture))] * 4
    # Other work on the machine delays the loop too: one calm run of three is proof enough, a blocked loop has none.
    for _ in range(3):
        if await slow_moments(refs) < 0.05:
            return
    pytest.fail("the event loop waited more than 50 ms while pictures were read")


@asynccontextmanager
async def a_server(answer: bytes, certificate: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A real server on loopback: its port, and what it was asked."""
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=certificate)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


async def test_an_allowed_loopback_server_is_fetched_from_over_real_sockets() -> None:
    async with a_server(reply(plain("JPEG"))[0]) as (port, asked):
        limits = MediaLimits(remote="allow-list", allowed_hosts=("127.0.0.1",), allowed_ports=(port,))
        with a_door(limits) as door:
            (image,) = await door.open([ImageRef(f"http://127.0.0.1:{port}/cat.jpg")])
        assert (image.width, image.height) == (20, 10)
        assert asked[0].startswith(f"GET /cat.jpg HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())


async def test_the_same_server_is_refused_to_public_only_doors() -> None:
    async with a_server(reply(plain())[0]) as (port, asked):
        error = await refusal(MediaLimits(allowed_ports=(port,)), f"http://127.0.0.1:{port}/cat.jpg")
        assert "not a public host" in error.message
        assert asked == []


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key, and a certificate of pictures.example signed by itself."""
    key, file = folder / "key.pem", folder / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures.example"
    )
    names = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", str(key), "-out", str(file)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return key, file


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_checks_the_certificate_against_the_name_although_the_address_is_dialled(tmp_path: Path) -> None:
    key, file = make_certificate(tmp_path)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(file, key)
    asked_for: list[str | None] = []
    served.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    async with a_server(reply(plain())[0], served) as (port, _):
        limits = MediaLimits(
            remote="allow-list", allowed_hosts=("pictures.example", "impostor.example"), allowed_ports=(port,)
        )
        resolver = Names(pictures_example=[["127.0.0.1"]], impostor_example=[["127.0.0.1"]])
        trust = ssl.create_default_context(cafile=str(file))
        with a_door(limits, resolver=resolver, certificates=trust) as door:
            (image,) = await door.open([ImageRef(f"https://pictures.example:{port}/")])
            assert image.width == 20
            with pytest.raises(InvalidMedia, match="certificate was not accepted"):
                await door.open([ImageRef(f"https://impostor.example:{port}/")])
        assert asked_for == ["pictures.example", "impostor.example"]
        with a_door(limits, resolver=resolver) as stranger, pytest.raises(InvalidMedia, match="certificate"):
            await stranger.open([ImageRef(f"https://pictures.example:{port}/")])
