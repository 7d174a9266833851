"""`onsight verify` prints what it compared and ends with 0 when all of it is within tolerance, else with 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from onsight.engines.torch_engine import verify as verifying
from tests.cli.conftest import RunCommand
from tests.tiny_phi3 import write_phi3

pytestmark = pytest.mark.model


def test_without_a_name_peek_is_verified(run: RunCommand) -> None:
    done = run("verify", "--device", "cpu")
    assert done.code == 0, done.out + done.err
    assert "peek: Peek as float32 on cpu" in done.out
    assert "108 tensors: all accounted for, all finite" in done.out
    for row in ("token ids +equal +equal", "likeliest tokens +17 of 17 equal +17 of 17 equal", "passed"):
        assert re.search(row, done.out), done.out
    assert re.search(r"tokens/s +[\d.]+ +[\d.]+", done.out)
    assert re.search(r"peak memory +[\d,]+ MiB +[\d,]+ MiB", done.out)


def test_a_difference_past_the_limit_ends_with_1(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verifying.TOLERANCES, torch.float32, -1.0)
    done = run("verify", "peek", "--device", "cpu")
    assert done.code == 1
    assert "FAILED" in done.out


def test_a_family_without_a_reference_is_said_to_have_none(run: RunCommand, tmp_path: Path) -> None:
    folder = write_phi3(tmp_path / "model")
    done = run("verify", str(folder), "--device", "cpu")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "transformers has no class for Phi-3.5-vision" in text
    assert "nothing but the tensors was compared" in text
    assert "passed" not in text
