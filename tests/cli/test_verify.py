"""`onsight verify` prints what it compared and ends with 0 when all of it is within tolerance, else with 1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onsight.engines.torch_engine import verify as verifying
from tests.cli.conftest import RunCommand
from tests.stand_in_hub import StandInHub, repo_of, stand_in_hub
from tests.tiny_models import write_smolvlm
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


def test_a_model_of_the_hub_is_downloaded_and_verified_and_then_needs_no_network(tmp_path: Path) -> None:
    def verify(hub: StandInHub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "onsight", "verify", *arguments, "--device", "cpu"],
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    with stand_in_hub(org__tiny=repo_of(write_smolvlm(tmp_path / "model"))) as hub:
        refused = verify(hub, "org/tiny", HF_HUB_OFFLINE="1")
        assert refused.returncode == 2
        assert refused.stderr.startswith("onsight: org/tiny is not in the local cache")
        assert hub.asked == []
        first = verify(hub, "org/tiny", "--revision", "main")
        assert first.returncode == 0, first.stderr
    offline = verify(hub, "org/tiny", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert "passed" in offline.stdout


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
