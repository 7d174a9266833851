"""A Llama 3.2 Vision in Ollama's GGUF layout is read as the published checkpoint is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.engine_choice import build_roster, choose_kind
from onsight.engines.torch_engine.gguf_weights import GgufWeights
from onsight.engines.torch_engine.loading import stored_tensors
from onsight.engines.torch_engine.saving import save_quantised
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from onsight.models.hub import locate_model
from tests import ollama_gguf
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.ollama_gguf import published, write_ollama, write_plain
from tests.tiny_models import draw

pytestmark = pytest.mark.model
Q8 = gguf.GGMLQuantizationType.Q8_0
ASKED = asking(turn(draw((200, 0, 0), 90, 40), draw((0, 0, 200)), "What colour? 12345"), max_tokens=8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(plain: Path, tmp_path: Path) -> Path:
    return write_ollama(plain, tmp_path / "llama-vision.gguf")


@pytest.mark.parametrize("begin", ["", "llama."])
def test_every_tensor_comes_back_under_its_published_name(plain: Path, tmp_path: Path, begin: str) -> None:
    read = GgufWeights(write_ollama(plain, tmp_path / "model.gguf", start=begin))
    stored = {published(name): tensor for name, tensor in load_file(plain / "model.safetensors").items()}
    assert set(read.keys()) == set(stored)
    for name, tensor in stored.items():
        assert read.get_slice(name).get_shape() == list(tensor.shape)
        torch.testing.assert_close(read.get_tensor(name), tensor.float(), rtol=0, atol=1e-6)


async def test_it_answers_as_the_safetensors_do(plain: Path, file: Path, start: StartEngine) -> None:
    folder = locate_model(str(file))
    assert find_card(str(file), folder).family == "mllama"
    expected = await answer(await start(plain), ASKED)
    made = await answer(await start(folder), ASKED)
    assert made.text == expected.text
    for one, other in zip(made.logprobs, expected.logprobs, strict=True):
        assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)


def test_its_words_become_the_same_tokens(plain: Path, file: Path) -> None:
    ours, theirs = Vocabulary(locate_model(str(file))), Vocabulary(plain)
    for text in ("What's in the picture?", "  12345 and\n\nthe RED   Button\t<|image|>", "Привет, 世界! 🙂"):
        assert ours.encode([(text, False)]) == theirs.encode([(text, False)])
    assert ours.require("<|image|>") == theirs.require("<|image|>")


async def test_few_bits_are_read_and_packed_again(plain: Path, tmp_path: Path, start: StartEngine) -> None:
    """Q8_0 rounds by at most a 127th of the largest of 32, half of it either way."""
    folder = locate_model(str(write_ollama(plain, tmp_path / "model.gguf", Q8)))
    stored = {published(name): tensor for name, tensor in load_file(plain / "model.safetensors").items()}
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    read = GgufWeights(folder / "model.gguf").get_tensor(name)
    assert 0 < (read - stored[name]).abs().max() <= 0.51 * stored[name].abs().max() / 127
    out = tmp_path / "int4"
    save_quantised(folder, find_card("model.gguf", folder), "int4", out)
    assert "U8" in {one.kind for one in stored_tensors(out).values()}
    again = await answer(await start(out), ASKED)
    direct = await answer(await start(folder, quantize="int4"), ASKED)
    assert again.text == direct.text


def test_a_tensor_of_an_unknown_kind_is_named(file: Path) -> None:
    read = GgufWeights(file)
    name = "multi_modal_projector.weight"
    read._tensors[name] = replace(read._tensors[name], kind=39_000)
    with pytest.raises(StartError, match=r"mm\.0\.weight .*ggml type 39000"):
        read.get_tensor(name)


def test_the_torch_engine_is_chosen_for_it_and_llama_cpp_refused(file: Path) -> None:
    assert choose_kind(Settings(model=str(file)))[0] == "torch"
    assert choose_kind(Settings(model=str(file), engine="torch"))[0] == "torch"
    with pytest.raises(StartError, match=r"never part of llama\.cpp"):
        build_roster(Settings(model=str(file), engine="llama"), None)


def test_the_folder_is_made_once_and_anew_for_another_file(plain: Path, file: Path, cache: Path) -> None:
    folder = locate_model(str(file))
    assert cache in folder.parents
    written = (folder / "config.json").stat().st_mtime_ns
    assert locate_model(str(file)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    write_ollama(plain, file, Q8)
    assert locate_model(str(file)) != folder


def spoilt(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert data.count(old) >= 1
    file.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"vision.max_num_tiles", b"vision.mox_num_tiles", "does not say mllama.vision.max_num_tiles"),
        (b"llama-bpe", b"other-bpe", "words cut as 'other-bpe'"),
        (b"blk.0.attn_v.weight", b"blk.0.attn_w.weight", "self_attn.v_proj"),
        (b"<|image|>", b"<|imago|>", "no token <|image|>"),
    ],
)
async def test_another_layout_is_refused(file: Path, start: StartEngine, old: bytes, new: bytes, said: str) -> None:
    spoilt(file, old, new)
    with pytest.raises(StartError, match=said.replace("|", r"\|")):
        await start(locate_model(str(file)))


def test_other_scaled_positions_are_refused(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_gguf, "ORIGINAL_POSITIONS", 4096)
    file = write_ollama(plain, tmp_path / "model.gguf")
    with pytest.raises(StartError, match="scales positions as no published"):
        locate_model(str(file))


def test_a_model_of_another_architecture_is_refused(file: Path) -> None:
    spoilt(file, b"mllama", b"mistra")
    with pytest.raises(StartError):
        locate_model(str(file))
