"""GGUF files: which are found, which are refused and why, and the card that one gets."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from onsight.core.errors import StartError
from onsight.models.gguf import card_of_gguf, check_digest, locate_gguf, names_gguf, read_gguf
from onsight.models.gguf_header import read_header
from onsight.models.hub import locate_model
from tests.stand_in_hub import Repo, StandInHub, stand_in_hub
from training.export_gguf import export_gguf
from training.model import BUNDLED


@pytest.fixture(scope="module")
def peek(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export_gguf(BUNDLED, tmp_path_factory.mktemp("peek"), "peek")


def write(path: Path, architecture: str, basename: str = "", **fields: int) -> Path:
    """A GGUF file without tensors' numbers but one; `fields` without the architecture's name."""
    writer = gguf.GGUFWriter(path, architecture)
    if basename:
        writer.add_string("general.basename", basename)
    for name, value in ({"context_length": 64, "embedding_length": 8} | fields).items():
        writer.add_uint32(f"{architecture}.{name}", value)
    return finished(writer, path, "token_embd.weight")


def finished(writer: gguf.GGUFWriter, path: Path, tensor: str) -> Path:
    """`path`, once the file is whole, with one tensor of zeros."""
    writer.add_tensor(tensor, np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_is_what_the_package_of_its_authors_reads(peek: tuple[Path, Path]) -> None:
    for path in peek:
        ours, theirs = read_header(path), gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
        assert dict(ours.fields) == fields
        assert [(one.name, one.begins) for one in ours.tensors] == [
            (one.name, one.data_offset) for one in theirs.tensors
        ]


def test_a_model_with_its_mmproj_is_read_from_both(peek: tuple[Path, Path]) -> None:
    model = read_gguf(*peek)
    assert (model.name, model.architecture, model.projector) == ("peek", "llama", "idefics3")
    assert model.context_tokens == 2048
    assert model.token_bytes == 4 * 2 * (64 + 64) * 2
    assert {"<image>", "<end_of_utterance>"} <= model.special_texts
    assert not model.calls_tools


def test_the_card_is_the_familys_less_what_llama_cannot_do_for_it(peek: tuple[Path, Path]) -> None:
    card = card_of_gguf(str(peek[0]), read_gguf(*peek))
    assert card.name == "peek"
    assert {"chat", "caption", "locate"} <= set(card.capabilities)
    assert "video" not in card.capabilities
    alone = card_of_gguf(str(peek[0]), read_gguf(peek[0], None))
    assert not alone.sees
    assert alone.capabilities == ("chat",)


@pytest.mark.parametrize(
    ("architecture", "instead"),
    [("mllama", "meta-llama/Llama-3.2-11B-Vision-Instruct"), ("phi3v", "microsoft/Phi-3.5-vision-instruct")],
)
def test_what_no_llama_runs_is_refused_with_what_to_run_instead(
    tmp_path: Path, architecture: str, instead: str
) -> None:
    with pytest.raises(StartError, match=instead):
        read_gguf(write(tmp_path / "model.gguf", architecture), None)


def test_an_mmproj_in_the_models_place_is_told_apart(peek: tuple[Path, Path]) -> None:
    with pytest.raises(StartError, match="--mmproj"):
        read_gguf(peek[1], None)
    with pytest.raises(StartError, match="is no mmproj"):
        read_gguf(peek[0], peek[0])


def test_an_mmproj_of_another_model_is_refused_with_both_widths(peek: tuple[Path, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "model.gguf", "llama", embedding_length=8)
    with pytest.raises(StartError, match=r"256 numbers, and model.gguf reads 8"):
        read_gguf(other, peek[1])


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(peek: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    whole = peek[0].read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StartError, match="no whole GGUF file"):
        read_gguf(path, None)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    check_digest(path, hashlib.sha256(b"one").hexdigest().upper())
    with pytest.raises(StartError, match="pinned"):
        check_digest(path, hashlib.sha256(b"two").hexdigest())
    with pytest.raises(StartError, match="has none"):
        check_digest(None, "00")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("a.gguf", True), ("/x/a.gguf", True), ("owner/name:Q4_K_M", True), ("owner/name", False), ("peek", False)],
)
def test_gguf_models_are_known_by_their_names(model: str, expected: bool) -> None:
    assert names_gguf(model) is expected


def test_a_file_without_an_ending_is_known_by_what_it_begins_with(peek: tuple[Path, Path], tmp_path: Path) -> None:
    """As the blobs in Ollama's store are."""
    blob, other = tmp_path / "sha256-0123", tmp_path / "sha256-4567"
    blob.symlink_to(peek[0])
    other.write_bytes(b"{}")
    assert names_gguf(str(blob))
    assert locate_gguf(str(blob), str(peek[1]), None) == (blob, peek[1])
    assert card_of_gguf(str(blob), read_gguf(blob, peek[1])).name == "peek"
    assert not names_gguf(str(other))
    assert not names_gguf(str(tmp_path))
    with pytest.raises(StartError, match="is a file; give the folder"):
        locate_model(str(other))


def test_the_mmproj_beside_the_model_is_found_the_one_of_its_name_first(tmp_path: Path) -> None:
    model = tmp_path / "tiny-q8.gguf"
    model.write_bytes(b"x")
    assert locate_gguf(str(model), None, None) == (model, None)
    for name in ("mmproj-other-f32.gguf", "mmproj-other-f16.gguf", "mmproj-other-bf16.gguf"):
        (tmp_path / name).write_bytes(b"x")
    assert locate_gguf(str(model), None, None)[1] == tmp_path / "mmproj-other-f16.gguf"
    (tmp_path / "mmproj-tiny-q8.gguf").write_bytes(b"x")
    assert locate_gguf(str(model), None, None)[1] == tmp_path / "mmproj-tiny-q8.gguf"
    assert locate_gguf(str(model), "mmproj-other-f32.gguf", None)[1] == tmp_path / "mmproj-other-f32.gguf"
    assert locate_gguf(str(model), "none", None) == (model, None)
    with pytest.raises(StartError, match=r"nowhere\.gguf"):
        locate_gguf(str(model), "nowhere.gguf", None)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(StartError, match=r"/nowhere/a\.gguf"):
        locate_gguf("/nowhere/a.gguf", None, None)


FETCH = """
import sys
from onsight.core.errors import OnsightError
from onsight.models.gguf import locate_gguf
try:
    print(*(path.name for path in locate_gguf(sys.argv[1], None, None) if path))
except OnsightError as error:
    sys.exit(f"refused: {error}")
"""


def fetch(hub: StandInHub, home: Path, model: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | hub.environment(home)
    return subprocess.run(
        [sys.executable, "-c", FETCH, model], env=environment, capture_output=True, text=True, check=False
    )


def test_a_hub_id_with_a_quantisation_brings_that_file_and_its_mmproj_only(tmp_path: Path) -> None:
    names = ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-tiny-f16.gguf", "mmproj-tiny-f32.gguf", "README.md")
    with stand_in_hub(org__tiny=Repo({name: name.encode() for name in names})) as hub:
        done = fetch(hub, tmp_path, "org/tiny:q4_k_m")
        assert done.stdout.split() == ["tiny-Q4_K_M.gguf", "mmproj-tiny-f16.gguf"], done.stderr
        assert hub.fetched() == {"tiny-Q4_K_M.gguf", "mmproj-tiny-f16.gguf"}
        hub.asked.clear()
        assert fetch(hub, tmp_path, "org/tiny:Q4_K_M").stdout.split() == ["tiny-Q4_K_M.gguf", "mmproj-tiny-f16.gguf"]
        assert hub.asked == []
        refused = fetch(hub, tmp_path, "org/tiny:Q2_K").stderr
    assert "'Q2_K'" in refused
    assert "tiny-Q8_0.gguf" in refused


def test_a_tag_is_a_word_of_its_own(tmp_path: Path) -> None:
    names = ("tiny-BF16.gguf", "tiny-F16.gguf", "tiny-Q4_K_M.gguf", "tiny-IQ4_XS.gguf", "mmproj-tiny-f32.gguf")
    with stand_in_hub(org__tiny=Repo({name: name.encode() for name in names})) as hub:
        assert fetch(hub, tmp_path, "org/tiny:F16").stdout.split()[0] == "tiny-F16.gguf"
        assert hub.fetched() == {"tiny-F16.gguf", "mmproj-tiny-f32.gguf"}
        for tag in ("Q4_K", "Q4_XS"):
            assert f"no GGUF file for {tag!r}" in fetch(hub, tmp_path, f"org/tiny:{tag}").stderr


def test_an_mmproj_that_a_broken_download_left_out_is_fetched(tmp_path: Path) -> None:
    model, mmproj = "tiny-Q8_0.gguf", "mmproj-tiny-f16.gguf"
    with stand_in_hub(org__tiny=Repo({name: name.encode() for name in (model, mmproj)})) as hub:
        fetch(hub, tmp_path, "org/tiny:Q8_0")
        (left,) = tmp_path.rglob(mmproj)
        left.unlink()
        assert fetch(hub, tmp_path, "org/tiny:Q8_0").stdout.split() == [model, mmproj]


def test_a_cached_model_without_an_mmproj_is_served_where_the_hub_cannot_be_asked(tmp_path: Path) -> None:
    with stand_in_hub(org__tiny=Repo({"tiny-Q8_0.gguf": b"x"})) as hub:
        assert fetch(hub, tmp_path, "org/tiny:Q8_0").stdout.split() == ["tiny-Q8_0.gguf"]
    done = fetch(hub, tmp_path, "org/tiny:Q8_0")
    assert done.stdout.split() == ["tiny-Q8_0.gguf"]
    assert "serving what is there: tiny-Q8_0.gguf" in done.stderr


def write_mmproj(path: Path, projector: str, width: int, basename: str = "") -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", projector)
    writer.add_uint32("clip.vision.projection_dim", width)
    if basename:
        writer.add_string("general.basename", basename)
    return finished(writer, path, "mm.0.weight")


@pytest.mark.parametrize(
    ("architecture", "projector", "said"),
    [
        ("llama", "qwen2.5vl_merger", "qwen2.5vl_merger makes pictures for qwen2vl, and model.gguf is llama"),
        ("qwen2vl", "idefics3", "idefics3 makes pictures for llama or granite, and model.gguf is qwen2vl"),
        ("qwen2vl", "qwen2.5vl_merger", None),
        ("llama", "mlp", None),
    ],
)
def test_an_mmproj_of_another_family_is_refused_whatever_its_width(
    tmp_path: Path, architecture: str, projector: str, said: str | None
) -> None:
    model = write(tmp_path / "model.gguf", architecture)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", projector, 8)
    if said is None:
        assert read_gguf(model, mmproj).projector == projector
        return
    with pytest.raises(StartError, match=said):
        read_gguf(model, mmproj)


@pytest.mark.parametrize(
    ("architecture", "projector", "width"), [("qwen2", "resampler", 0), ("llama", "mlp", 768), ("llama", "idefics3", 0)]
)
def test_a_width_that_says_nothing_of_the_model_is_passed_over(
    tmp_path: Path, architecture: str, projector: str, width: int
) -> None:
    """MiniCPM-V's converter writes 0, and those of old LLaVA models CLIP's own width."""
    model = write(tmp_path / "model.gguf", architecture)
    assert read_gguf(model, write_mmproj(tmp_path / "mmproj.gguf", projector, width)).projector == projector


def test_an_mmproj_that_names_another_model_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write(tmp_path / "model.gguf", "llama", basename="SmolVLM")
    read_gguf(model, write_mmproj(tmp_path / "same.gguf", "idefics3", 8, "SmolVLM"))
    assert caplog.text == ""
    read_gguf(model, write_mmproj(tmp_path / "other.gguf", "idefics3", 8, "SmolVLM2"))
    assert "'SmolVLM2'" in caplog.text
