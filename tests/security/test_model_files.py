"""A model's files that are cut, damaged or somebody's attack stop the start with a reason, before they are loaded."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from onsight.core.errors import StartError
from onsight.models.gguf import read_gguf
from tests.engines.torch_engine.test_loading import refusal
from tests.tiny_models import write_smolvlm


@pytest.mark.model
async def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_smolvlm(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    text = await refusal(path.parent)
    assert str(path) in text
    assert "cut short" in text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b"GGML", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 99), "version 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "a text has 9223372036854775808 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "buffer"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"x", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"x", 9, 8, 2**60), "a list has"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"x", 9) + struct.pack("<IQ", 9, 1) * 5000, "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sII", 3, 1, 0, 1, b"t", 99, 0), "99 dimensions"),
    ],
)
def test_a_corrupt_file_is_refused_with_what_is_wrong(tmp_path: Path, damage: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(damage + b"\0" * 64)
    with pytest.raises(StartError, match=rf"no whole GGUF file .*{said}"):
        read_gguf(path, None)
