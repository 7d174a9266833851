"""A Llama 3.2 Vision in Ollama's GGUF layout is read as the published checkpoint is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Stored
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from onsight.config import Settings
from onsight.core.errors import StartError
from onsight.engine_choice import build_roster, choose_kind
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.gguf_weights import GgufWeights
from onsight.engines.torch_engine.loading import Checkpoint, stored_tensors
from onsight.engines.torch_engine.memory import survey
from onsight.engines.torch_engine.saving import save_quantised
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from onsight.models.gguf_header import read_header
from onsight.models.hub import locate_model
from tests import ollama_gguf
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.ollama_gguf import published, write_ollama, write_plain
from tests.tiny_models import draw
from training.export_gguf import MIXTURE

pytestmark = pytest.mark.model
Q8 = "Q8_0"
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


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose products have rows of 256 and 384, in the mixture that Ollama's downloads are in; as bfloat16."""
    folder = tmp_path_factory.mktemp("wide")
    plain = write_plain(folder / "plain", width=256)
    file = write_ollama(plain, folder / "sha256-abc", MIXTURE)  # as Ollama's store calls a blob
    path = plain / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    return plain, file


def test_every_kind_of_the_usual_mixture_is_read(wide: tuple[Path, Path]) -> None:
    """An error of a 4-bit weight is a 15th of its group's range at most, half of it either way."""
    plain, file = wide
    stored = {published(name): tensor.float() for name, tensor in load_file(plain / "model.safetensors").items()}
    kinds = {one.kind for one in read_header(file).tensors}
    assert kinds == {Stored.F32, Stored.F16, Stored.Q4_K, Stored.Q6_K, Stored.Q5_0, Stored.Q8_0}
    read = GgufWeights(file)
    errors = {name: float((read.get_tensor(name) - one).norm() / one.norm()) for name, one in stored.items()}
    assert max(errors.values()) < 0.1
    products = [errors[name] for name in errors if name.endswith("self_attn.q_proj.weight") and "vision" not in name]
    assert min(products) > 0.05


async def test_the_usual_mixture_is_answered_from_in_4_bits(
    wide: tuple[Path, Path], start: StartEngine, tmp_path: Path
) -> None:
    """Rounded to 4 bits twice, beside not at all: of the same words the same ones are likely."""
    plain, file = wide
    folder, out = locate_model(str(file)), tmp_path / "int4"
    made = await answer(await start(folder, quantize="int4"), ASKED)
    expected = await answer(await start(plain), replace(ASKED, sampling=replace(ASKED.sampling)))
    ours, theirs = (torch.log_softmax(one.seen.logits[0], -1) for one in (made, expected))
    assert float((theirs.exp() * (theirs - ours)).sum()) < 0.2
    save_quantised(folder, find_card("model.gguf", folder), "int4", out)
    again = await answer(await start(out), replace(ASKED, sampling=replace(ASKED.sampling)))
    assert torch.equal(again.seen.logits, made.seen.logits)


def test_halves_and_fewer_bits_stay_halves_as_the_published_ones_do(wide: tuple[Path, Path]) -> None:
    """But for the products, which have 4 bits, and the tables of tiles' places, which Ollama stores whole."""
    held: list[dict[str, torch.Tensor]] = []
    for folder in (wide[0], locate_model(str(wide[1]))):
        card, keep = find_card("model.gguf", folder), lambda model: held.append(model.state_dict())
        checkpoint = Checkpoint(folder, torch.device("cpu"), torch.float32, scheme="int4", keep=keep)
        load_family(card.family, checkpoint, Vocabulary(folder))
    halves, ours = ({name: one for name, one in part.items() if "positional" not in name} for part in held)
    names = [name for name, one in halves.items() if one.dtype == torch.bfloat16 and not name.endswith(".scales")]
    assert len(names) == 1 + 1 + 3 * 6  # the words' table, the way to them, six products in each layer that sees
    assert all(ours[name].dtype == torch.float16 for name in names)
    assert [one.nbytes for one in ours.values()] == [one.nbytes for one in halves.values()]
    told = survey(locate_model(str(wide[1])), card, TorchSettings(device="cpu", quantize="int4")).memory.weights_bytes
    assert told == pytest.approx(sum(one.nbytes for one in held[1].values()), rel=0.04)


def test_a_tensor_of_an_unknown_kind_is_named(file: Path) -> None:
    read = GgufWeights(file)
    name = "multi_modal_projector.weight"
    read._tensors[name] = replace(read._tensors[name], kind=39_000)
    with pytest.raises(StartError, match=r"mm\.0\.weight .*ggml type 39000"):
        read.get_tensor(name)


def test_the_torch_engine_is_chosen_for_it_whatever_the_file_is_called(file: Path, wide: tuple[Path, Path]) -> None:
    assert choose_kind(Settings(model=str(wide[1])))[0] == "torch"
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
