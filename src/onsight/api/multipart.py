"""A request's multipart body: a file or several, and short texts beside; kept in memory, never on a disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from onsight.api.errors import WrongContentType
from onsight.core.errors import InvalidRequest

MEDIA_TYPE = "multipart/form-data"

_MAX_PARTS = 32
_MAX_TEXT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file in a form: its bytes, and what its sender called it."""

    name: str
    data: bytes


@dataclass(slots=True)
class Form:
    """What a form held: its texts by field, and its files in their order."""

    texts: dict[str, str] = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)

    @property
    def file(self) -> bytes | None:
        """The bytes of the first file, None when there is none."""
        return self.files[0].data if self.files else None


@dataclass(frozen=True, slots=True)
class FileField:
    """The field in which files come, and whether it may stand in the form `repeated`ly, `most` times."""

    name: str = "file"
    repeated: bool = False
    most: int = 1


ONE_FILE = FileField()


def is_multipart(request: Request) -> bool:
    """Whether the body says that it is a form with files."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


async def read_multipart(request: Request, files: FileField = ONE_FILE) -> Form:
    """The body as a form with `files`.

    Raises WrongContentType, InvalidRequest with the field, and what `BodyLimits` raises.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise WrongContentType("the content type names no boundary between the form's parts", param="content-type")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WrongContentType(f"the body is encoded as {encoding!r}; send it as it is", param="content-encoding")
    body = bytearray()
    async for piece in request.stream():
        body += piece
    return await asyncio.to_thread(_parse, bytes(body), boundary, files)


def _parse(body: bytes, boundary: bytes, files: FileField) -> Form:
    reader = _Reader(files)
    try:
        # A boundary that is too long is refused here already.
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_header_field": reader.header_name,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header_end,
                "on_headers_finished": reader.headers_finished,
                "on_part_data": reader.data,
                "on_part_end": reader.end,
                "on_end": reader.whole,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _broken() from None
    if not reader.complete:
        raise _broken()
    return reader.form


class _Reader:
    """Collects the parts that the parser finds."""

    def __init__(self, files: FileField) -> None:
        self.form = Form()
        self.complete = False
        self._files = files
        self._most_parts = max(_MAX_PARTS, files.most)
        self._parts = 0
        self._name = self._file_name = ""
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._content = bytearray()

    def begin(self) -> None:
        self._parts += 1
        if self._parts > self._most_parts:
            raise InvalidRequest(f"the form has more than {self._most_parts} parts")
        self._name, self._disposition, self._content = "", b"", bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = (bytes(half) for half in self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        try:
            self._name = options.get(b"name", b"").decode()
        except UnicodeDecodeError:
            raise InvalidRequest("a field's name in the form is not UTF-8") from None
        if not self._name:
            raise InvalidRequest("a part of the form has no name")
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        is_file = self._name == self._files.name
        if self._name in self.form.texts or (is_file and self.form.files and not self._files.repeated):
            raise InvalidRequest(f"`{self._name}` stands in the form twice; send it once", param=self._name)
        if b"filename" in options and not is_file:
            raise InvalidRequest(
                f"the form's file is in field `{self._name}`; send it as `{self._files.name}`",
                param=self._name,
                code="unknown_field",
            )

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._name != self._files.name and len(self._content) + end - start > _MAX_TEXT_BYTES:
            raise InvalidRequest(f"`{self._name}` has more than {_MAX_TEXT_BYTES} bytes", param=self._name)
        self._content += memoryview(data)[start:end]

    def end(self) -> None:
        if self._name == self._files.name:
            self.form.files.append(FormFile(self._file_name, bytes(self._content)))
            return
        try:
            self.form.texts[self._name] = self._content.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"`{self._name}` is not UTF-8", param=self._name) from None

    def whole(self) -> None:
        self.complete = True


def _broken() -> InvalidRequest:
    return InvalidRequest("the body is no form with the boundary that it names, or was cut", code="invalid_multipart")
