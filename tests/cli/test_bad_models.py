"""A model that cannot be loaded is refused by every command that loads it: one clear sentence, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onsight.core.errors import StartError
from onsight.models.hub import bundled_models, locate_model
from tests.cli.conftest import Done, RunCommand
from tests.tiny_models import write_smolvlm

pytestmark = pytest.mark.model

NORM = "model.text_model.norm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smolvlm(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "spoilt"))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **fields: object) -> None:
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | fields))


def miss_a_tensor(folder: Path) -> tuple[str, ...]:
    change_tensors(folder, lambda tensors: tensors.pop(NORM))
    return (f"tensor {NORM} is missing",)


def rename_a_tensor(folder: Path) -> tuple[str, ...]:
    change_tensors(folder, lambda tensors: tensors.update({"model.norm": tensors.pop(NORM)}))
    return f"tensor {NORM} is missing", "unexpected tensor model.norm"


def bend_a_tensor(folder: Path) -> tuple[str, ...]:
    change_tensors(folder, lambda tensors: tensors.update({NORM: torch.zeros(3)}))
    return f"tensor {NORM} has shape [3], but config.json asks for [64]", ""


def cut_the_weights_short(folder: Path) -> tuple[str, ...]:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return str(path), "cut short"


def lose_a_shard(folder: Path) -> tuple[str, ...]:
    places = {"weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    return ("names model-00001-of-00002.safetensors, which the folder does not hold",)


def name_another_architecture(folder: Path) -> tuple[str, ...]:
    change_config(folder, architectures=["BertModel"])
    return "['BertModel']", "SmolVLM2 (SmolVLMForConditionalGeneration)", "Llama 3.2 Vision (Mllama"


def garble_the_configuration(folder: Path) -> tuple[str, ...]:
    (folder / "config.json").write_text("{'single': quotes}")
    return str(folder / "config.json"), "cannot be read as JSON"


def lose_the_tokenizer(folder: Path) -> tuple[str, ...]:
    (folder / "tokenizer.json").unlink()
    return ("holds no tokenizer.json",)


def pickle_the_weights(folder: Path) -> tuple[str, ...]:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin, which can hide code", ".safetensors"


def bring_code_along(folder: Path) -> tuple[str, ...]:
    change_config(folder, auto_map={"AutoModel": "modeling_tiny.Tiny"})
    (folder / "modeling_tiny.py").write_text("raise SystemExit('this must never run')")
    return "auto_map", "never run"


def one_sentence(done: Done) -> str:
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("onsight: ")]
    return line


SPOILT = (
    miss_a_tensor, rename_a_tensor, bend_a_tensor, cut_the_weights_short, lose_a_shard, name_another_architecture,
    garble_the_configuration, lose_the_tokenizer, pickle_the_weights, bring_code_along,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("verify",), ("models",)], ids=lambda words: words[0])
def test_a_spoilt_model_is_one_sentence_and_code_2(
    command: tuple[str, ...], spoil: Callable[[Path], tuple[str, ...]], folder: Path, run: RunCommand
) -> None:
    wanted = spoil(folder)
    text = one_sentence(run(command[0], str(folder), *command[1:], "--device", "cpu"))
    assert [piece for piece in wanted if piece not in text] == [], text


@pytest.fixture
def open_to_others() -> Iterator[Path]:
    """A folder below one that everybody may enter, which pytest's own is not."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=oct)
def test_a_folder_that_may_not_be_read_is_one_sentence(mode: int, whole: Path, open_to_others: Path) -> None:
    folder = Path(shutil.copytree(whole, open_to_others / "model"))
    folder.chmod(mode)
    user = os.geteuid()
    # What is bundled is looked up once, here: nobody may not read the package of a root's checkout.
    bundled_models()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything, so be nobody for a while
        with pytest.raises(StartError, match=f"folder {folder} cannot be read by this user"):
            locate_model(str(folder))
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
