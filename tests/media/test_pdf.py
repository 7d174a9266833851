"""Of a PDF each page that is asked for is a picture, upright, on white and within every limit."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from onsight.core.byte_cache import ByteCache
from onsight.core.errors import InvalidMedia, InvalidRequest, RequestError, TooLarge
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageOptions, ImageRef
from onsight.core.pages import Pages, read_spans
from onsight.media.decode_child import DecodeChild
from onsight.media.door import MediaDoor, MediaLimits
from onsight.media.pdf import BadPage, draw_pdf, read_pdf
from onsight.media.verdict import Refused, Verdict
from tests.media.networks import Names, Network, reply
from tests.media.papers import BLUE, GREEN, RED, encrypted, fill, page, paper, pdf, with_bad_pages
from tests.media.pictures import WHITE, data_url, encoded, pixel, plain


async def turned_over(
    source: bytes | str,
    pages: str = "",
    limits: MediaLimits | None = None,
    options: ImageOptions = ImageOptions(),  # noqa: B008 (frozen)
) -> tuple[Image, ...]:
    """The pages' pictures."""
    door = MediaDoor(limits)
    try:
        wanted = Pages(read_spans(pages) if pages else (), "pages")
        (opened,) = await door.open_pages([ImageRef(source, options, "here", wanted)])
        return opened
    finally:
        door.close()


async def refusal(source: bytes | str, pages: str = "", limits: MediaLimits | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await turned_over(source, pages, limits)
    return caught.value


async def test_each_page_is_a_picture_with_its_number_in_the_order_asked_for() -> None:
    every = await turned_over(paper())
    assert [(image.page, image.size) for image in every] == [(number, Size(180, 360)) for number in (1, 2, 3)]
    assert [pixel(image, 90, 60) for image in every] == [RED, GREEN, BLUE]
    assert {pixel(image, 90, 300) for image in every} == {WHITE}
    some = await turned_over(paper(), "3,1-2")
    assert [(image.page, pixel(image, 0, 0)) for image in some] == [(3, BLUE), (1, RED), (2, GREEN)]


async def test_a_pages_digest_is_that_of_its_pixels() -> None:
    (image,) = await turned_over(paper(), "2")
    assert image.digest == Image.of(image.pixels, image.width, image.height).digest


async def test_a_pdf_is_told_by_its_bytes_however_it_comes() -> None:
    data = paper([GREEN])
    for source in (data, b"\xef\xbb\xbf\n" + data, data_url(data, "application/pdf"), data_url(data, "image/png")):
        (image,) = await turned_over(source)
        assert pixel(image, 9, 9) == GREEN
    network = Network(reply(data))
    door = MediaDoor(resolver=Names(papers_example=[["8.8.8.8"]]), network=network)
    (opened,) = await door.open_pages([ImageRef("https://papers.example/a", pages=Pages())])
    door.close()
    assert [one.page for one in opened] == [1]


async def test_a_picture_that_speaks_of_a_pdf_is_a_picture() -> None:
    from PIL import Image as Pillow
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("Comment", "%PDF-1.7")
    (image,) = await turned_over(encoded(Pillow.new("RGB", (9, 9), RED), pnginfo=said))
    assert (image.page, image.size) == (None, Size(9, 9))


async def test_pages_are_upright_and_drawn_as_a_viewer_shows_them() -> None:
    drawn = fill(RED, (0, 72, 72, 72))
    (turned,) = await turned_over(pdf([page(drawn, more="/Rotate 90")]))
    assert turned.size == Size(360, 180)
    assert (pixel(turned, 300, 90), pixel(turned, 60, 90)) == (RED, WHITE)
    (cropped,) = await turned_over(pdf([page(drawn, more="/CropBox [0 72 36 144]")]))
    assert cropped.size == Size(90, 180)
    assert pixel(cropped, 80, 170) == RED


async def test_a_forms_field_is_drawn_as_it_was_saved_and_nothing_in_a_file_is_run_or_opened() -> None:
    look = b"<< /Type /XObject /Subtype /Form /BBox [0 0 36 36] /Length %d >>\nstream\n%s\nendstream"
    green = fill(GREEN, (0, 0, 36, 36))
    field = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /Rect [0 0 36 36] /F 4 /AP << /N 6 0 R >> /A 7 0 R >>"
    script = b"<< /S /JavaScript /JS (this.getField('a').hidden = true; app.launchURL('http://127.0.0.1:1/');) >>"
    catalog = "/AcroForm << /Fields [5 0 R] >> /OpenAction 7 0 R /Names << /EmbeddedFiles << /Names [(x) 7 0 R] >> >>"
    form = pdf([page(b"", more="/Annots [5 0 R]")], catalog, [field, look % (len(green), green), script])
    (image,) = await turned_over(form)
    assert (pixel(image, 45, 315), pixel(image, 45, 45)) == (GREEN, WHITE)


async def test_a_page_is_drawn_no_finer_than_the_limits_and_the_request_allow() -> None:
    def area(images: tuple[Image, ...]) -> int:
        return sum(image.width * image.height for image in images)

    assert area(await turned_over(paper(), options=ImageOptions(max_pixels=5000))) in range(3 * 4700, 3 * 5000 + 1)
    assert area(await turned_over(paper(), limits=MediaLimits(max_pixels=10_000))) in range(28_000, 30_001)
    assert area(await turned_over(paper(), limits=MediaLimits(max_request_pixels=12_000))) in range(11_000, 12_001)
    (image,) = await turned_over(paper([RED]), limits=MediaLimits(pdf_dpi=72))
    assert image.size == Size(72, 144)


async def test_the_same_page_is_not_drawn_again() -> None:
    door = MediaDoor()
    try:
        ref = ImageRef(paper(), pages=Pages())
        first, again = await door.open_pages([ref]), await door.open_pages([ref])
    finally:
        door.close()
    assert first == again
    assert (door.decoded.cache.hits, door.decoded.cache.misses) == (3, 3)


LONG = zlib.compress(b"q " * 30_000_000)
"""Drawing commands that take seconds to read and say nothing."""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (encrypted(b"secret"), "the PDF is encrypted and needs a password; save it without one and resend"),
        (paper()[:300], "cannot decode PDF: the file is damaged or cut short"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 9, "cannot decode PDF: the file is damaged or cut short"),
        (pdf([]), "the PDF has no pages"),
        (
            paper([RED] * 10_000),
            r"the PDF has 10000 pages to look at; the limit is 32 in a request \(media.max_images\):"
            " ask for fewer with pages, like 1-3",
        ),
        (
            pdf([page(b"", 20_000, 20_000)]),
            r"page 1 of the PDF is 20000x20000 points \(1/72 inch\); the limit is 14400 a side",
        ),
        (pdf([page(b""), page(b"", 1, 1)]), "page 2 of the PDF is 2x2 px; each side needs at least 4 px"),
        (pdf([page(b"", 14_000, 10)]), "page 1 of the PDF is 35000x25 px; the longer side may be at most 200 times"),
    ],
)  # fmt: skip
async def test_a_pdf_that_cannot_be_shown_is_a_clear_refusal(data: bytes, why: str) -> None:
    error = await refusal(data)
    assert isinstance(error, InvalidMedia)
    assert error.param == "here"
    with pytest.raises(InvalidMedia, match=why):
        raise error


async def test_an_encrypted_pdf_that_every_viewer_opens_is_opened() -> None:
    assert len(await turned_over(encrypted(b""))) == 1


async def test_what_takes_too_long_or_too_much_is_stopped_and_others_are_not_held_up() -> None:
    bomb = pdf([page(LONG, more="")]).replace(b"<< /Length", b"<< /Filter /FlateDecode /Length")
    assert len(bomb) < 200_000
    error = await refusal(bomb, limits=MediaLimits(pdf_draw_s=1))
    assert error.message.startswith("opening the PDF takes more than 1 s (media.pdf_draw_s); ask for fewer pages")
    error = await refusal(paper() + bytes(2 << 20), limits=MediaLimits(max_bytes=1 << 20))
    assert isinstance(error, TooLarge)


async def by_page(source: bytes, limits: MediaLimits | None = None) -> list[object]:
    """Each page's colour, or the error that says why there is none."""
    door = MediaDoor(limits)
    try:
        opened = await door.open_by_page(ImageRef(source, param="here", pages=Pages()))
    finally:
        door.close()
    assert [page.number if isinstance(page, BadPage) else page.page for page in opened] == list(
        range(1, len(opened) + 1)
    )
    assert {page.error.param for page in opened if isinstance(page, BadPage)} <= {"here"}
    return [page.error.message if isinstance(page, BadPage) else pixel(page, 0, 0) for page in opened]


async def test_where_pages_are_told_apart_a_bad_one_is_told_of_in_its_place() -> None:
    large = "page 2 of the PDF is 20000x20000 points (1/72 inch); the limit is 14400 a side"
    damaged = "cannot decode page 3 of the PDF: it is damaged; save the file again and resend"
    assert await by_page(with_bad_pages()) == [RED, large, damaged, BLUE]
    assert (await refusal(with_bad_pages())).message == large
    assert (await refusal(with_bad_pages(), "1,3")).message == damaged


def bomb(*contents: bytes) -> bytes:
    packed = [zlib.compress(content) for content in contents]
    return pdf([page(content) for content in packed]).replace(b"<< /Length", b"<< /Filter /FlateDecode /Length")


async def test_pages_before_one_that_takes_too_long_come() -> None:
    half = fill(RED, (0, 72, 72, 72))
    red, *late = await by_page(bomb(half, zlib.decompress(LONG), half), MediaLimits(pdf_draw_s=1))
    assert red == RED
    assert len(late) == 2
    assert all(str(why).startswith("opening the PDF takes more than 1 s") for why in late)


class Breaking(DecodeChild):
    """A process that dies of the second page."""

    def ask(self, work: str, task: Any, data: bytes, cpu_s: float, read: Any) -> Any:
        if work != "draw a pdf" or 2 not in [number for number, *_ in task["pages"]]:
            return super().ask(work, task, data, cpu_s, read)
        before = [one for one in task["pages"] if one[0] < 2]
        super().ask(work, {"pages": before}, data, cpu_s, read)
        raise Refused(Verdict.BROKEN)


async def test_pages_after_one_that_breaks_the_decoder_come() -> None:
    child, limits = Breaking(), MediaLimits()
    try:
        for whole, middle, last in (
            (False, "cannot decode PDF: the file is damaged", "cannot decode PDF: the file is damaged"),
            (True, "cannot decode page 2 of the PDF", BLUE),
        ):
            file = read_pdf(paper(), Pages(), ImageOptions(), limits, child)
            first, second, third = draw_pdf(file, ImageOptions(), limits, ByteCache(0), child, by_page=whole)
            assert isinstance(first, Image)
            assert pixel(first, 0, 0) == RED
            assert isinstance(second, BadPage)
            assert second.error.message.startswith(middle)
            shown = pixel(third, 0, 0) if isinstance(third, Image) else third.error.message[: len(str(last))]
            assert shown == last
    finally:
        child.close()


async def test_pages_and_pictures_together_are_counted() -> None:
    door = MediaDoor(MediaLimits(max_images=3))
    refs = [ImageRef(plain(), param="a"), ImageRef(paper(), param="b", pages=Pages())]
    try:
        with pytest.raises(
            InvalidMedia, match="the request has 4 or more pictures and pages; the limit is 3"
        ) as caught:
            await door.open_pages(refs)
    finally:
        door.close()
    assert caught.value.param == "b"


async def test_a_page_that_is_not_there_is_refused_under_the_pages_own_field() -> None:
    error = await refusal(paper(), "2-4")
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == ("page 4 is asked for, but the PDF has 3; ask for 1-3", "pages")
    error = await refusal(plain(), "1")
    assert (error.message, error.param) == ("pages are asked for, but this is a picture; leave them out", "pages")


async def test_where_only_a_picture_will_do_a_pdf_is_refused() -> None:
    door = MediaDoor()
    try:
        with pytest.raises(InvalidMedia, match="this is a PDF, and only a picture will do here") as caught:
            await door.open([ImageRef(paper(), param="here")])
    finally:
        door.close()
    assert caught.value.param == "here"
