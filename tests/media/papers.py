"""Small PDFs, honest and hostile, written out by hand for the tests of whatever sees pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)

Colour = tuple[int, int, int]

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
"""What the PDF standard fills passwords up with."""


def fill(colour: Colour, box: tuple[float, float, float, float]) -> bytes:
    """Drawing commands for a filled box: x, y of its lower left corner, width, height, in points."""
    red, green, blue = (value / 255 for value in colour)
    return b"%f %f %f rg %f %f %f %f re f\n" % (red, green, blue, *box)


def page(content: bytes, width: float = 72, height: float = 144, more: str = "") -> tuple[str, bytes]:
    """A page's own dictionary and its drawing commands; points."""
    return f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {width:g} {height:g}] {more}", content


def paper(colours: Iterable[Colour] = (RED, GREEN, BLUE)) -> bytes:
    """A page of 72x144 points for each colour: its upper half in that colour, the lower half white."""
    return pdf([page(fill(colour, (0, 72, 72, 72))) for colour in colours])


def pdf(pages: Sequence[tuple[str, bytes]], catalog: str = "", more: Sequence[bytes] = ()) -> bytes:
    """The file. Page n (from 0) is object 3 + 2n, the objects of `more` follow the last page's."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
    ]
    for number, (facts, content) in enumerate(pages):
        objects.append(f"<< {facts} /Contents {4 + 2 * number} 0 R >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return _file([*objects, *more])


def with_bad_pages() -> bytes:
    """Four pages: a red one, one that is too large, one that is no page, a blue one."""
    good = [fill(colour, (0, 72, 72, 72)) for colour in (RED, BLUE)]
    made = pdf([page(good[0]), page(b"", 20_000, 20_000), page(b""), page(good[1])])
    third = made.index(b"7 0 obj")
    return made[:third] + made[third:].replace(b"/Type /Page ", b"/Type /Nope ", 1)


def _file(objects: Sequence[bytes], trailer: str = "") -> bytes:
    data = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = f"trailer << /Size {len(places) + 1} /Root 1 0 R {trailer} >>".encode()
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s%s\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, table, head, start)
    return bytes(data)


def encrypted(password: bytes) -> bytes:
    """One empty page that opens with `password` alone (the standard's revision 2, RC4 with 40 bits)."""
    padded, identity = (password + _PADDING)[:32], bytes(16)
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + (0xFFFFFFFC).to_bytes(4, "little") + identity).digest()[:5]
    entries = f"/Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{_rc4(key, _PADDING).hex()}>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 144] >>",
        f"<< {entries} >>".encode(),
    ]
    return _file(objects, f"/Encrypt 4 0 R /ID [<{identity.hex()}> <{identity.hex()}>]")


def _rc4(key: bytes, data: bytes) -> bytes:
    state, other = list(range(256)), 0
    for place in range(256):
        other = (other + state[place] + key[place % len(key)]) % 256
        state[place], state[other] = state[other], state[place]
    coded, place, other = bytearray(), 0, 0
    for byte in data:
        place = (place + 1) % 256
        other = (other + state[place]) % 256
        state[place], state[other] = state[other], state[place]
        coded.append(byte ^ state[(state[place] + state[other]) % 256])
    return bytes(coded)
