"""Models come from the cache, else from the Hub: only what is needed, at the asked revision, or one clear sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stand_in_hub import TOKEN, Repo, StandInHub, stand_in_hub

LOCATE = """
import sys
from onsight.core.errors import OnsightError
from onsight.models.hub import locate_model
try:
    print(locate_model(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
except OnsightError as error:
    sys.exit(f"refused: {error}")
"""

NEEDED = {
    "config.json": b'{"architectures": ["SmolVLMForConditionalGeneration"]}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 512,
}
OTHERS = {
    "README.md": b"words",
    "modeling_tiny.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "weights.pth": b"pickle",
    "consolidated.safetensors": b"the same again",
    "original/params.json": b"{}",
    "onnx/model.safetensors": b"for others",
}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    older = NEEDED | {"tokenizer_config.json": b'{"older": 1}'}
    with stand_in_hub(
        org__tiny=Repo(NEEDED | OTHERS, branches={"v1": older}),
        org__gated=Repo(dict(NEEDED), gated=True),
        org__pickles=Repo({"config.json": b"{}", "pytorch_model.bin": b"pickle", "model.py": b""}),
    ) as running:
        yield running


def locate(hub: StandInHub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`locate_model` in a process of its own: huggingface_hub reads its environment when it is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", LOCATE, *arguments],
        env={**clean, **hub.environment(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def found(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence."""
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("refused: ")
    assert "Traceback" not in done.stderr
    return last


def test_a_model_is_downloaded_once_and_only_what_is_needed_of_it(hub: StandInHub, tmp_path: Path) -> None:
    folder = found(locate(hub, tmp_path, "org/tiny"))
    assert {path.name for path in folder.iterdir()} == set(NEEDED)
    assert {name: (folder / name).read_bytes() for name in NEEDED} == NEEDED
    assert hub.fetched() == set(NEEDED)
    hub.asked.clear()
    assert found(locate(hub, tmp_path, "org/tiny")) == folder
    assert hub.asked == []


def test_offline_uses_the_cache_and_says_what_it_lacks(hub: StandInHub, tmp_path: Path) -> None:
    text = refused(locate(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1"))
    assert "org/tiny is not in the local cache" in text
    assert "HF_HUB_OFFLINE" in text
    assert hub.asked == []
    folder = found(locate(hub, tmp_path, "org/tiny"))
    assert found(locate(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")) == folder


def test_an_endpoint_that_is_no_hub_is_said(hub: StandInHub, tmp_path: Path) -> None:
    hub.nameless = True
    assert f"{hub.url} does not answer as a Hub does" in refused(locate(hub, tmp_path, "org/tiny"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub: StandInHub, tmp_path: Path) -> None:
    text = refused(locate(hub, tmp_path, "org/tiny", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 cannot be reached" in text


def test_a_revision_is_a_branch_or_a_commit(hub: StandInHub, tmp_path: Path) -> None:
    older = found(locate(hub, tmp_path, "org/tiny", "v1"))
    assert json.loads((older / "tokenizer_config.json").read_text()) == {"older": 1}
    latest = found(locate(hub, tmp_path, "org/tiny"))
    assert latest != older
    hub.asked.clear()
    assert found(locate(hub, tmp_path, "org/tiny", older.name)) == older
    assert hub.asked == []


def test_a_revision_that_is_not_there_is_named(hub: StandInHub, tmp_path: Path) -> None:
    assert "org/tiny has no revision 'v9'" in refused(locate(hub, tmp_path, "org/tiny", "v9"))
    assert "has no revision" in refused(locate(hub, tmp_path, "org/tiny", "0" * 40))


def test_a_gated_model_needs_a_token(hub: StandInHub, tmp_path: Path) -> None:
    text = refused(locate(hub, tmp_path, "org/gated"))
    assert f"accept its terms on {hub.url}/org/gated" in text
    assert "HF_TOKEN" in text
    assert "gated" in refused(locate(hub, tmp_path, "org/gated", HF_TOKEN="hf_of_another_account"))
    assert set(NEEDED) == {path.name for path in found(locate(hub, tmp_path, "org/gated", HF_TOKEN=TOKEN)).iterdir()}


def test_a_model_that_is_not_on_the_hub_is_named(hub: StandInHub, tmp_path: Path) -> None:
    assert f"{hub.url}/org/none does not exist or is private" in refused(locate(hub, tmp_path, "org/none"))


def test_pickled_weights_are_refused_before_anything_is_downloaded(hub: StandInHub, tmp_path: Path) -> None:
    text = refused(locate(hub, tmp_path, "org/pickles"))
    assert "found only pytorch_model.bin, which can hide code" in text
    assert hub.fetched() == set()


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: StandInHub, tmp_path: Path) -> None:
    large = bytes(range(256)) * (24 << 12)
    hub.repos["org/large"] = Repo(NEEDED | {"model.safetensors": large})
    hub.cuts = 1
    folder = found(locate(hub, tmp_path, "org/large"))
    assert (folder / "model.safetensors").read_bytes() == large
    # Of the half that came, 12 MiB, huggingface_hub keeps whole pieces of 10 MiB.
    assert hub.ranges == [f"bytes={10 << 20}-"]


def test_what_is_missing_of_a_snapshot_is_fetched_and_nothing_else(hub: StandInHub, tmp_path: Path) -> None:
    folder = found(locate(hub, tmp_path, "org/tiny"))
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    assert "not all of it" in refused(locate(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1"))
    hub.asked.clear()
    assert found(locate(hub, tmp_path, "org/tiny")) == folder
    assert hub.fetched() == {"model.safetensors"}


def test_a_snapshot_that_another_program_left_unfinished_is_completed(hub: StandInHub, tmp_path: Path) -> None:
    folder = found(locate(hub, tmp_path, "org/tiny"))
    (folder / "tokenizer.json").unlink()
    for listing in (tmp_path / "hub").rglob("trees/*.json"):
        listing.unlink()
    hub.asked.clear()
    assert (found(locate(hub, tmp_path, "org/tiny")) / "tokenizer.json").exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the cache's folder should be")
    text = refused(locate(hub, tmp_path, "org/tiny"))
    assert f"cannot be stored under {tmp_path / 'hub'}: " in text


def test_a_revision_of_a_model_on_this_machine_is_refused(hub: StandInHub, tmp_path: Path) -> None:
    for name in ("peek", str(tmp_path)):
        assert "only Hub ids have revisions" in refused(locate(hub, tmp_path, name, "main"))
    assert "--revision" in refused(locate(hub, tmp_path, "org/tiny@v1"))
