"""A stranger's URL leads to public hosts and nowhere else, however it is spelt and wherever it is sent on."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from onsight.core.errors import InvalidMedia, RequestError, StartError, TimedOut, TooLarge, Unsupported
from onsight.core.messages import Image, ImageRef
from onsight.media.addresses import is_public
from onsight.media.door import MediaDoor, MediaLimits
from tests.media.networks import Names, Network, redirect, reply
from tests.media.pictures import plain

PUBLIC = "93.184.215.14"
OTHER = "151.101.1.69"
METADATA = "169.254.169.254"
PICTURE = plain()
OK = reply(PICTURE)


def names(**answers: list[list[str]]) -> Names:
    return Names(**({"pictures_example": [[PUBLIC]]} | answers))


async def fetch(url: str, network: Network, resolver: Names | None = None, limits: MediaLimits | None = None) -> Image:
    door = MediaDoor(limits, resolver=resolver or names(), network=network)
    try:
        (image,) = await door.open([ImageRef(url, param="here")])
        return image
    finally:
        door.close()


async def refusal(
    url: str, network: Network, resolver: Names | None = None, limits: MediaLimits | None = None
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await fetch(url, network, resolver, limits)
    assert caught.value.param == "here"
    return caught.value


async def test_a_public_picture_is_fetched_by_its_checked_address_under_its_own_name() -> None:
    network, resolver = Network(OK), names()
    image = await fetch("https://pictures.example/a%20b.png?x=1#part", network, resolver)
    assert (image.width, image.height) == (20, 10)
    assert (network.dialled, resolver.asked) == ([(PUBLIC, 443)], ["pictures.example"])
    assert network.tls_names == ["pictures.example"]
    assert network.written.startswith(b"GET /a%20b.png?x=1 HTTP/1.1\r\nHost: pictures.example\r\n")
    assert network.closed == 1


async def test_a_request_carries_no_cookie_no_key_and_no_referrer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    network = Network([redirect("/next", "301 Moved")[0].replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n")], OK)
    await fetch("http://pictures.example/a.png", network)
    sent = [line.split(b":")[0].lower() for line in network.written.split(b"\r\n")]
    assert set(sent) <= {
        b"",
        b"get /a.png http/1.1",
        b"get /next http/1.1",
        b"host",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"connection",
    }
    assert network.dialled == [(PUBLIC, 80), (PUBLIC, 80)]


INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    METADATA,
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "2001::1",
    "2001:0:808:808::1",
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "100::1",
    "5f00::1",
    "nonsense",
]


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused_and_not_dialled(address: str) -> None:
    network = Network(OK)
    error = await refusal("http://pictures.example/a.png", network, names(pictures_example=[[address]]))
    assert isinstance(error, InvalidMedia)
    assert network.dialled == []
    assert address not in error.message


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "127.1",
        "127.0.1",
        "017700000001",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "localhost",
        "LOCALHOST",
        "①②⑦.⓪.⓪.①",
        METADATA,
        "2852039166",
        "[fe80::1%25eth0]",
        "127。0。0。1",
    ],
)
async def test_every_spelling_of_an_inside_address_is_refused(host: str) -> None:
    network = Network(OK)
    door = MediaDoor(network=network)  # with the operating system's look-up, which reads numbers like a C library
    with pytest.raises(InvalidMedia):
        await door.open([ImageRef(f"http://{host}/a.png")])
    door.close()
    assert network.dialled == []


async def test_a_trailing_dot_hides_nothing() -> None:
    network = Network(OK)
    await refusal("http://localhost./a.png", network, names(localhost=[["127.0.0.1"]]))
    assert network.dialled == []


async def test_one_inside_answer_among_public_ones_refuses_the_name() -> None:
    network = Network(OK)
    await refusal("http://pictures.example/", network, names(pictures_example=[[PUBLIC, OTHER, "10.0.0.1"]]))
    crowd = [PUBLIC] * 30 + ["::1"]
    await refusal("http://pictures.example/", network, names(pictures_example=[crowd]))
    assert network.dialled == []


async def test_a_name_is_looked_up_once_so_a_second_answer_cannot_lead_inside() -> None:
    network, resolver = Network(OK), names(pictures_example=[[PUBLIC], ["127.0.0.1"]])
    await fetch("http://pictures.example/", network, resolver)
    assert (network.dialled, resolver.asked) == ([(PUBLIC, 80)], ["pictures.example"])


async def test_a_name_that_turns_inside_between_redirects_is_refused() -> None:
    network, resolver = Network(redirect("/again")), names(pictures_example=[[PUBLIC], ["127.0.0.1"]])
    assert "not a public host" in (await refusal("http://pictures.example/", network, resolver)).message
    assert network.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "location",
    [
        f"http://{METADATA}/latest/meta-data/",
        "http://[::1]/",
        "http://inside.example/",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "gopher://x/",
        "http://pictures.example:22/",
        "http://a:b@pictures.example/",
        "http://[",
        "data:image/png;base64,AAAA",
    ],
)
async def test_a_redirect_passes_the_same_checks(location: str) -> None:
    network = Network(redirect(location), OK)
    error = await refusal("http://pictures.example/", network, names(inside_example=[["10.0.0.7"]]))
    assert isinstance(error, InvalidMedia)
    assert network.dialled == [(PUBLIC, 80)]
    assert "10.0.0.7" not in error.message


async def test_relative_redirects_are_followed_three_times_and_no_further() -> None:
    hops = [redirect("b.png"), redirect("/c.png"), redirect("//other.example/d.png", "308 Permanent Redirect")]
    resolver = names(other_example=[[OTHER]])
    network = Network(*hops, OK)
    assert (await fetch("http://pictures.example/x/a.png", network, resolver)).width == 20
    assert network.dialled == [(PUBLIC, 80)] * 3 + [(OTHER, 80)]
    for line in (b"GET /x/b.png ", b"GET /c.png ", b"GET /d.png HTTP/1.1\r\nHost: other.example\r\n"):
        assert line in network.written
    network = Network(redirect("/again"))
    assert "more than 3 redirects" in (await refusal("http://pictures.example/", network)).message
    assert len(network.dialled) == 4


async def test_a_redirect_may_raise_to_https_but_not_fall_to_http() -> None:
    assert await fetch("http://pictures.example/", Network(redirect("https://pictures.example/"), OK))
    network = Network(redirect("http://pictures.example/"), OK)
    assert "from https to http" in (await refusal("https://pictures.example/", network)).message
    assert len(network.dialled) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://user:secret@pictures.example/", "user name or password"),
        ("http://@pictures.example/", "user name or password"),
        ("http://pictures.example\\@127.0.0.1/", ""),
        ("http://pictures.example:22/", "port 22"),
        ("https://pictures.example:8443/", "port 8443"),
        ("http:///a.png", "with a host"),
        ("http:a.png", "with a host"),
        ("http://pictures.example:99999/", ""),
        ("http://" + "a" * 300 + ".example/", ""),
        ("http://pictures.example/" + "a" * 9000, "the limit is 8192"),
        ("http://pictures.example/\r\nHost: x", "malformed"),
        ("http://pictures.example\t/", "malformed"),
        ("file:///etc/passwd", "file: URLs are not read"),
        ("ftp://pictures.example/a.png", "ftp: URLs are not read"),
        ("blob:https://pictures.example/1", "blob: URLs are not read"),
        ("/etc/passwd", "not a URL"),
        ("iVBORw0KGgo=", "not a URL"),
        ("", "not a URL"),
    ],
)
async def test_urls_that_cannot_be_right_are_refused_before_any_look_up(url: str, words: str) -> None:
    network, resolver = Network(OK), names()
    error = await refusal(url, network, resolver)
    assert isinstance(error, InvalidMedia)
    assert words in error.message
    assert "secret" not in error.message
    assert network.dialled == []


async def test_an_unknown_name_is_a_clear_refusal_without_the_resolvers_text() -> None:
    error = await refusal("http://nowhere.example/", Network(OK))
    assert error.message == "cannot fetch the image: the host nowhere.example was not found"


async def test_the_next_address_is_dialled_when_the_first_is_dead() -> None:
    network, resolver = Network(OK, dead=frozenset({PUBLIC})), names(pictures_example=[[PUBLIC, OTHER]])
    assert await fetch("http://pictures.example/", network, resolver)
    assert network.dialled == [(PUBLIC, 80), (OTHER, 80)]


async def test_a_dead_host_is_named_and_its_address_is_not() -> None:
    error = await refusal("http://pictures.example/", Network(OK, dead=frozenset({PUBLIC})))
    assert error.message == "cannot fetch the image from pictures.example: the connection failed"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"", status="404 Not Found"), "pictures.example answered 404"),
        (reply(b"", status="204 No Content"), "answered 204"),
        (reply(PICTURE, "Content-Encoding: gzip"), "Content-Encoding"),
        (reply(b"<html>", "Content-Type: text/html; charset=utf-8"), "sent a web page, not an image"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "the connection failed"),
        ([b""], "the connection failed"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc"], "the connection failed"),
        ([b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 200_000], "the connection failed"),
        (reply(b"hello"), "not a picture"),
    ],
)
async def test_bad_answers_are_refused_in_our_words(answer: list[bytes], words: str) -> None:
    error = await refusal("http://pictures.example/", Network(answer))
    assert isinstance(error, InvalidMedia)
    assert words in error.message
    assert "httpcore" not in error.message


async def test_the_content_type_is_not_believed() -> None:
    assert await fetch("http://pictures.example/", Network(reply(PICTURE, "Content-Type: text/plain")))


async def test_an_announced_size_past_the_limit_is_refused_before_the_body() -> None:
    network = Network([b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", *[bytes(1000)] * 1000])
    assert isinstance(await refusal("http://pictures.example/", network), TooLarge)
    assert network.bytes_read < 2000


async def test_an_endless_chunked_body_is_cut_at_the_limit() -> None:
    endless = itertools.chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
        itertools.repeat(b"1000\r\n" + bytes(4096) + b"\r\n"),
    )
    network = Network(endless)
    error = await refusal("http://pictures.example/", network, limits=MediaLimits(max_bytes=100_000))
    assert isinstance(error, TooLarge)
    assert "media.max_mb" in error.message
    assert network.bytes_read < 120_000
    assert network.closed == 1


async def test_a_body_that_drips_is_given_up_at_the_total_time_limit() -> None:
    drip = itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"], itertools.repeat(b"a"))
    network = Network(drip, pause_s=0.02)
    error = await refusal("http://pictures.example/", network, limits=MediaLimits(fetch_timeout_s=0.2))
    assert isinstance(error, TimedOut)
    assert "0.2 s (media.fetch_timeout_s)" in error.message
    assert network.closed == 1


async def test_cancelling_stops_every_fetch() -> None:
    drip = itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"], itertools.repeat(b"a"))
    network = Network(drip, pause_s=0.01)
    door = MediaDoor(resolver=names(), network=network)
    task = asyncio.create_task(door.open([ImageRef("http://pictures.example/")] * 3))
    while network.bytes_read < 100:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert network.closed == 3
    door.close()


async def test_names_that_callers_wait_for_are_looked_up_in_turn() -> None:
    asked, answered = list[str](), asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        await answered.wait()
        return [PUBLIC]

    def ask(caller: str, count: int) -> asyncio.Task[object]:
        refs = [ImageRef(f"http://{caller}.example/")] * count
        return asyncio.create_task(door.open_pages(refs, caller=caller))

    door = MediaDoor(resolver=resolve, network=Network(OK))
    many = [ask("many", 6), ask("many", 6)]
    while len(asked) < 4:
        await asyncio.sleep(0.01)
    one = ask("one", 1)
    await asyncio.sleep(0.05)
    answered.set()
    await asyncio.gather(one, *many)
    assert asked.index("one.example") == 4, "who holds none is next"
    door.close()


async def test_one_refused_picture_stops_the_other_fetches() -> None:
    drip = itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"], itertools.repeat(b"a"))
    network = Network(drip, pause_s=0.01)
    door = MediaDoor(resolver=names(), network=network)
    refs = [ImageRef("http://pictures.example/", param="slow"), ImageRef("http://127.0.0.1/", param="inside")]
    with pytest.raises(InvalidMedia) as caught:
        await asyncio.wait_for(door.open(refs), 2)
    assert caught.value.param == "inside"
    assert network.closed == len(network.dialled)
    door.close()


async def test_with_remote_media_off_nothing_is_fetched() -> None:
    network = Network(OK)
    error = await refusal("http://pictures.example/", network, limits=MediaLimits(remote="off"))
    assert isinstance(error, Unsupported)
    assert network.dialled == []


async def test_an_allow_list_opens_its_hosts_even_inside_and_no_others() -> None:
    limits = MediaLimits(remote="allow-list", allowed_hosts=("Store.Internal", "10.9.9.9"), allowed_ports=(80, 9000))
    network, resolver = Network(OK), names(store_internal=[["10.0.0.5"]])
    assert await fetch("http://store.internal.:9000/", network, resolver, limits)
    assert await fetch("http://10.9.9.9/", network, resolver, limits)
    assert network.dialled == [("10.0.0.5", 9000), ("10.9.9.9", 80)]
    assert "list of image hosts" in (await refusal("http://pictures.example/", network, resolver, limits)).message
    away = Network(redirect("http://pictures.example/"), OK)
    assert "list of image hosts" in (await refusal("http://store.internal/", away, resolver, limits)).message


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": ("a",)},
        {"remote": "allow-list"},
        {"remote": "off", "allowed_hosts": ("a",)},
        {"decode_workers": 0},
        {"max_pixels": 200_000_000},
    ],
)
def test_limits_that_contradict_stop_the_start(settings: dict[str, object]) -> None:
    with pytest.raises(StartError, match="media"):
        MediaLimits(**settings)
