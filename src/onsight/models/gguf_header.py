"""The header of a GGUF file: its fields and the extent of its tensors, read with every length checked."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from onsight.core.errors import StartError

Item = int | float | bool | str
Value = Item | list[Item]

_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
}  # fmt: skip
"""ggml's number of a type -> numbers in a block and bytes of it, for the types that model files are made of."""
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape`: rows first, as PyTorch has it, the reverse of the file's. `kind`: ggml's number of the type. `begins`:
    byte of the file; `size`: bytes, 0 for a kind that is not known here."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begins: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`fields`: name -> value."""

    fields: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    def text(self, name: str) -> str:
        """The field as a text; empty where it is missing or is none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str, otherwise: int = 0) -> int:
        """The field as a whole number, the largest one of a list."""
        value = self.fields.get(name)
        if isinstance(value, list):
            return max((item for item in value if isinstance(item, int)), default=otherwise)
        return value if isinstance(value, int) else otherwise

    def items(self, name: str) -> list[Item]:
        """The field as a list; empty where it is missing or is none."""
        value = self.fields.get(name)
        return value if isinstance(value, list) else []


def is_gguf(path: Path) -> bool:
    """Whether there is a file that is named as GGUF files are, or begins as they do: Ollama's blobs have no ending."""
    if path.suffix == ".gguf" or not os.path.isfile(path):
        return os.path.isfile(path)
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Read `path`'s header. Raises StartError for a file that is no GGUF, is broken, or is shorter than it says."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).header()
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise StartError(f"{path} is no whole GGUF file ({error}): download or convert it again") from None


class _Cursor:
    """Walks through the bytes; struct refuses to read past their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._place = 0

    def header(self) -> GgufHeader:
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._place = len(_MAGIC)
        version = self._one("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not 2 or 3")
        tensors, count = int(self._one("Q")), int(self._one("Q"))
        fields = {}
        for _ in range(count):
            name = self._text()
            fields[name] = self._value(int(self._one("I")))
        return GgufHeader(fields, self._placed([self._tensor() for _ in range(tensors)], fields))

    def _placed(self, tensors: list[GgufTensor], fields: Mapping[str, Value]) -> tuple[GgufTensor, ...]:
        """The tensors with their places in the file. Raises ValueError when one lies beyond its end."""
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        first = -(-self._place // alignment) * alignment
        ends = first + max((one.begins + one.size for one in tensors), default=0)
        if ends > len(self._data):
            raise ValueError(f"it has {len(self._data)} bytes, and its tensors need {ends}")
        return tuple(replace(one, begins=first + one.begins) for one in tensors)

    def _tensor(self) -> GgufTensor:
        """A tensor whose place is still counted from the first one's."""
        name = self._text()
        dimensions = int(self._one("I"))
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = tuple(int(self._one("Q")) for _ in range(dimensions))[::-1]
        kind = int(self._one("I"))
        per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
        return GgufTensor(name, shape, kind, int(self._one("Q")), prod(shape) // per_block * block_bytes)

    def _value(self, kind: int) -> Value:
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            return self._one(_format(kind))
        inner, length = int(self._one("I")), int(self._one("Q"))
        if length > len(self._data):
            raise ValueError(f"a list has {length} items")
        if inner == _TEXT:
            return [self._text() for _ in range(length)]
        return list(self._many(_format(inner), length))

    def _text(self) -> str:
        length = int(self._one("Q"))
        if length > len(self._data):
            raise ValueError(f"a text has {length} bytes")
        raw = self._data[self._place : self._place + length]
        self._place += length
        return raw.decode("utf-8")

    def _one(self, kind: str) -> int | float | bool:
        (value,) = self._many(kind, 1)
        return value

    def _many(self, kind: str, count: int) -> tuple[int | float | bool, ...]:
        layout = struct.Struct(f"<{count}{kind}")
        found = layout.unpack_from(self._data, self._place)
        self._place += layout.size
        return found


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a field has the unknown type {kind}")
    return _NUMBERS[kind]
