"""`onsight quantize` writes a model that can be served, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from onsight.engines.torch_engine.quantize import int8_is_exact
from tests.cli.conftest import RunCommand
from tests.tiny_models import write_smolvlm

pytestmark = [pytest.mark.model, pytest.mark.skipif(not int8_is_exact(), reason="heads of 8 bits need VNNI")]


def test_a_model_is_written_and_shown_with_its_bits(run: RunCommand, tmp_path: Path) -> None:
    folder, out = write_smolvlm(tmp_path / "model"), tmp_path / "few"
    done = run("quantize", str(folder), "--out", str(out))
    assert done.code == 0
    assert f"Serve it: onsight serve {out}" in done.out
    assert {path.name for path in out.iterdir()} >= {path.name for path in folder.glob("*.json")}
    assert " as int4, the choice for cpu" in run("models", str(out)).out
    assert " as int8, the choice for cpu" in run("models", str(folder), "--quantize", "int8").out
    assert " as float32, the choice for cpu" in run("models", str(folder)).out


def test_no_bits_and_a_full_folder_are_refused(run: RunCommand, tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model")
    done = run("quantize", str(folder), "--out", str(tmp_path / "few"), "--quantize", "none")
    assert (done.code, done.err) == (
        2,
        "onsight: quantize is none, so there is nothing to write: choose int4 or int8\n",
    )
    assert not (tmp_path / "few").exists()
    done = run("quantize", str(folder), "--out", str(folder))
    assert done.code == 2
    assert "is there already and not empty: name a new folder" in done.err
