"""data: URLs: the only way that a picture or a video comes inside a text."""

from __future__ import annotations

import binascii

from onsight.core.errors import InvalidMedia, TooLarge
from onsight.media.limits import Kind, MediaLimits

_FORMS: dict[Kind, str] = {"image": "data:image/png;base64,<base64>", "video": "data:video/mp4;base64,<base64>"}
_TYPES: dict[Kind, tuple[str, ...]] = {"image": ("image/", "application/pdf"), "video": ("video/", "image/gif")}
_MAX_MEDIA_TYPE_CHARS = 256

# Characters decoded at a time: between two chunks other threads may run, so one long text never holds up the event
# loop.
_CHUNK_CHARS = 1 << 18


def as_url(source: str) -> str:
    """A URL as it is; bare base64, in which no colon can be, as a data: URL."""
    return source if ":" in source[:32] else f"data:;base64,{source}"


def check_data_url(url: str, limits: MediaLimits, kind: Kind = "image") -> None:
    """Refuse, without decoding, a data: URL of another form, or one that must hold more bytes than `limits` allow.

    The length counts white space too, so a tenth of slack is left; `decode_data_url` is exact.
    """
    _payload_start(url, kind)
    if len(url) > limits.bytes_of(kind) * 4 // 3 * 1.1 + _MAX_MEDIA_TYPE_CHARS + 64:
        raise _too_large(limits, kind)


def data_url_head(url: str, count: int) -> bytes:
    """The first bytes in a base64 data: URL, at most `count` and fewer past white space. Raises InvalidMedia."""
    start = _payload_start(url, "image")
    text = "".join(url[start : start + count * 4 // 3].split())
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except ValueError:
        raise _broken("it has a character or padding that base64 does not allow") from None


def decode_data_url(url: str, limits: MediaLimits, kind: Kind = "image") -> bytes:
    """The bytes in a base64 data: URL; white space between the characters is skipped. Not for the event loop.

    Raises InvalidMedia when the base64 is broken and TooLarge past what `limits` allow.
    """
    decoded = bytearray()
    rest = ""
    padded = False
    for start in range(_payload_start(url, kind), len(url), _CHUNK_CHARS):
        chunk = rest + "".join(url[start : start + _CHUNK_CHARS].split())
        whole = len(chunk) // 4 * 4
        chunk, rest = chunk[:whole], chunk[whole:]
        # Three equal signs are never padding, but Python's strict mode lets four stand as an empty quantum.
        if (chunk and padded) or chunk.endswith("==="):
            raise _broken("there is text after the padding, or too much of it")
        try:
            decoded += binascii.a2b_base64(chunk, strict_mode=True)
        except ValueError:
            raise _broken("it has a character or padding that base64 does not allow") from None
        padded = padded or chunk.endswith("=")
        if len(decoded) > limits.bytes_of(kind):
            raise _too_large(limits, kind)
    if rest:
        raise _broken("its length is not a multiple of 4; was it cut, or its padding left out?")
    if not decoded:
        raise _broken("it is empty")
    return bytes(decoded)


def _payload_start(url: str, kind: Kind) -> int:
    comma = url.find(",", 0, _MAX_MEDIA_TYPE_CHARS)
    if comma < 0:
        raise InvalidMedia(f"the data: URL has no comma after its media type; write {_FORMS[kind]}")
    media_type, *attributes = (part.strip().lower() for part in url[len("data:") : comma].split(";"))
    if "base64" not in attributes:
        raise InvalidMedia(f"only base64 data: URLs are read; write {_FORMS[kind]}")
    if media_type and not media_type.startswith((*_TYPES[kind], "application/octet-stream")):
        noun = "an image" if kind == "image" else "a video"
        raise InvalidMedia(f"the data: URL does not say that it holds {noun}; write {_FORMS[kind]}")
    return comma + 1


def _broken(why: str) -> InvalidMedia:
    return InvalidMedia(f"the base64 of the data: URL is broken: {why}")


def _too_large(limits: MediaLimits, kind: Kind) -> TooLarge:
    return TooLarge(f"the {kind} has more than {limits.byte_limit(kind)}; send a smaller one")
