"""`onsight models` shows what runs here, what is on this machine, and what one model takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onsight.cli import commands
from onsight.core.errors import StartError
from onsight.models.card import cards
from tests.stand_in_hub import StandInHub
from tests.tiny_models import write_qwen

pytestmark = pytest.mark.model


def show(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "100"}).invoke(commands, ["models", *arguments], catch_exceptions=True)
    if isinstance(done.exception, StartError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def fill_cache(home: Path) -> None:
    """A cache with a whole model, one whose download broke off, and one of a family that is not ours."""
    write_qwen(snapshot(home, "org/whole"))
    broken = write_qwen(snapshot(home, "org/broken"))
    (broken / "model.safetensors").unlink()
    (snapshot(home, "org/words") / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))


def snapshot(home: Path, name: str) -> Path:
    """The folder of a snapshot at the main branch."""
    repo, commit = home / "hub" / f"models--{name.replace('/', '--')}", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    return repo / "snapshots" / commit


def in_process(home: Path, *arguments: str) -> str:
    """The command in a process of its own: huggingface_hub reads its environment when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "onsight", "models", *arguments],
        env={**os.environ, **StandInHub("http://127.0.0.1:9").environment(home), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_every_family_is_listed_with_models_to_choose_from() -> None:
    listed = show()
    for card in cards():
        assert card.name in listed
        for name in card.published:
            assert name in listed


def test_models_on_this_machine_are_listed_with_their_state(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    lines = in_process(tmp_path).splitlines()
    (whole,) = [line.split() for line in lines if "org/whole" in line]
    assert (whole[0], whole[-1]) == ("qwen2_5_vl", "ready")
    (broken,) = [line for line in lines if "org/broken" in line]
    assert "not whole" in broken
    assert not any("org/words" in line for line in lines)
    assert "1 more in the cache are of families that do not run here." in lines
    bundled = [line.split() for line in lines if "in the package" in line]
    assert [(row[1], row[-1]) for row in bundled] == [("leaf", "ready"), ("peek", "ready")]


def test_one_model_is_shown_with_what_it_takes_in_memory() -> None:
    shown = show("peek", "--device", "cpu")
    assert "2,048 tokens" in shown
    assert "108, all accounted for" in shown
    assert "4.0 KiB of keys and values" in shown
    # 26.1 MiB of weights and 8 requests of 2048 tokens of 4 KiB.
    assert "90.1 MiB with 8 requests of 2,048 tokens" in shown
    assert "58.1 MiB with 4 requests" in show("peek", "--device", "cpu", "--max-num-seqs", "4")


def test_a_model_in_the_cache_is_shown_without_the_network(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    assert "1,024 tokens" in in_process(tmp_path, "org/whole", "--device", "cpu")


def test_a_model_that_is_not_here_is_shown_as_far_as_its_card_goes() -> None:
    shown = show("Hcompany/Holo1.5-7B")
    assert "locate up to 1,003,520 px" in shown
    assert "known once its files are here" in shown
    assert "Llama 3.2 Community" in show("llama3_2_vision")


def test_what_nobody_knows_is_one_sentence() -> None:
    with pytest.raises(StartError, match="org/none is not on this machine and no card names it; known families are"):
        show("org/none")
    with pytest.raises(StartError, match="there is no model 'nothing'"):
        show("nothing")
