"""`onsight pull`: a model's files come whole, with what an adapter stands on, and are then served without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.test_gguf import write, write_mmproj
from tests.stand_in_hub import Repo, StandInHub, repo_of, stand_in_hub
from tests.tiny_models import write_smolvlm


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    folder = write_smolvlm(tmp_path_factory.mktemp("tiny"))
    with stand_in_hub(org__tiny=repo_of(folder)) as running:
        yield running


def pull(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ONSIGHT_"))}
    return subprocess.run(
        [sys.executable, "-m", "onsight", "pull", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.model
def test_a_pulled_model_is_there_without_a_network(hub: StandInHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    done = pull("org/tiny", **environment)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "model.safetensors").is_file()
    assert "org/tiny (SmolVLM" in done.stderr
    offline = pull("org/tiny", **environment, HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout


@pytest.mark.model
def test_an_adapters_base_comes_along(hub: StandInHub, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/tiny"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    done = pull(str(adapter), **hub.environment(tmp_path))
    folders = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert folders[0] == str(adapter)
    assert (Path(folders[1]) / "model.safetensors").is_file()


def test_the_bundled_model_needs_no_network() -> None:
    done = pull("peek", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("bundled/peek")


def test_a_gguf_model_of_the_hub_comes_with_its_mmproj_and_is_then_there_without_a_network(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"tiny-Q8_0-0000{part}-of-00002.gguf", "llama", f"part {part}") for part in (1, 2)]
    names = [path.name for path in (*parts, write_mmproj(tmp_path / "mmproj-tiny-f16.gguf", "idefics3", 8))]
    files = {name: (tmp_path / name).read_bytes() for name in names} | {"tiny-Q4_K_M.gguf": b"another"}
    with stand_in_hub(org__gguf=Repo(files)) as gguf_hub:
        environment = gguf_hub.environment(tmp_path / "home")
        done = pull("org/gguf:Q8_0", **environment)
        assert done.returncode == 0, done.stderr
        assert [Path(line).name for line in done.stdout.split()] == names
        assert gguf_hub.fetched() == set(names)
        refused = pull("org/gguf:Q2_K", **environment)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no GGUF file for 'Q2_K'" in refused.stderr
    offline = pull("org/gguf:Q8_0", **environment, HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout


def test_what_cannot_be_had_is_one_sentence_and_code_2(hub: StandInHub, tmp_path: Path) -> None:
    done = pull("org/none", **hub.environment(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "does not exist or is private" in done.stderr
