"""A ColQwen2.5 is whole or refused: its projection above all, which elsewhere has been random without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from onsight.core.errors import StartError
from onsight.engines.torch_engine.families.colqwen import ColQwen
from tests.engines.torch_engine.colqwen_reference import ColQwenReference
from tests.engines.torch_engine.embedding import ASKED, SHOWN, embed, farthest, load
from tests.tiny_colqwen import LAYOUTS, TARGETS, change_json, change_tensors, copy_of, write_colqwen

pytestmark = pytest.mark.model

Change = Callable[[dict[str, torch.Tensor]], object]
PROJECTION = "base_model.model.custom_text_proj"
VISUAL = "base_model.model.visual.blocks.0"
LAYER = "base_model.model.language_model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "base", layout="current")


def write_adapter(base: Path, folder: Path, **settings: object) -> ColQwenReference:
    """Have peft write an adapter with random halves; returned is the reference with the adapter merged by peft."""
    reference = ColQwenReference(base)
    chosen = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS, "task_type": "FEATURE_EXTRACTION"} | settings
    adapted = peft.get_peft_model(reference.model, peft.LoraConfig(**chosen))  # type: ignore[arg-type]
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=dice) * 0.1)
    adapted.save_pretrained(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    reference.model = adapted.merge_and_unload().eval()
    return reference


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ColQwenReference]:
    folder = tmp_path_factory.mktemp("models") / "adapter"
    return folder, write_adapter(base, folder)


@pytest.fixture
def spoil(adapter: tuple[Path, ColQwenReference], tmp_path: Path) -> Callable[..., Path]:
    """`spoil(change)` is a copy of the adapter whose tensors went through `change`; settings replace its own."""

    def spoil(change: Change = lambda tensors: None, **settings: object) -> Path:
        folder = copy_of(adapter[0], tmp_path / "spoilt")
        change_tensors(folder / "adapter_model.safetensors", change)
        change_json(folder / "adapter_config.json", **settings)
        return folder

    return spoil


def refusal(folder: Path) -> str:
    with pytest.raises(StartError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(model: ColQwen, reference: ColQwenReference) -> None:
    expected = [*reference.queries(ASKED), *reference.pages(SHOWN)]
    made = embed(model, *ASKED, *SHOWN)
    apart = max(farthest(one, other) for one, other in zip(made, expected, strict=True))
    print(f"largest difference from the model that peft merged: {apart:.1e}")
    assert apart <= 1e-4


def test_an_adapter_and_its_base_are_the_merged_model(base: Path, adapter: tuple[Path, ColQwenReference]) -> None:
    folder, merged = adapter
    model = load(folder)
    same(model, merged)
    bare = embed(load(base), *ASKED)
    assert all(
        farthest(one, torch.tensor(other.vectors())) > 0.05
        for one, other in zip(embed(model, *ASKED), bare, strict=True)
    )


def test_rank_stabilised_scaling_is_honoured(base: Path, tmp_path: Path) -> None:
    merged = write_adapter(base, tmp_path / "adapter", use_rslora=True)
    same(load(tmp_path / "adapter"), merged)


def test_targets_may_be_a_list_of_names(base: Path, tmp_path: Path) -> None:
    merged = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "custom_text_proj"])
    same(load(tmp_path / "adapter"), merged)


def test_a_merged_checkpoint_is_the_same_model(
    base: Path, adapter: tuple[Path, ColQwenReference], tmp_path: Path
) -> None:
    folder = copy_of(base, tmp_path / "merged")
    adapter[1].model.save_pretrained(folder)
    change_json(folder / "config.json", architectures=["ColQwen2_5"])
    same(load(folder), adapter[1])


@pytest.mark.parametrize("of_base", LAYOUTS)
@pytest.mark.parametrize("of_adapter", LAYOUTS)
def test_adapter_and_base_may_name_their_tensors_differently(
    adapter: tuple[Path, ColQwenReference], tmp_path: Path, of_base: str, of_adapter: str
) -> None:
    base = write_colqwen(tmp_path / "base", layout=of_base)
    folder = copy_of(adapter[0], tmp_path / "adapter")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            inner = name.removeprefix("base_model.model.")
            nested = inner if inner.startswith("custom_text_proj") else "model." + inner
            tensors["base_model.model." + LAYOUTS[of_adapter](nested)] = tensors.pop(name)

    change_tensors(folder / "adapter_model.safetensors", rename)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    same(load(folder), adapter[1])


def test_a_projection_under_the_adapters_prefix_is_understood(base: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("custom_text_proj.weight", "custom_text_proj.bias"):
            tensors["base_model.model." + name] = tensors.pop(name)

    folder = copy_of(base, tmp_path / "prefixed")
    change_tensors(folder / "model.safetensors", rename)
    same(load(folder), ColQwenReference(base))


def test_the_adapters_own_tokenizer_and_image_settings_come_first(
    base: Path, adapter: tuple[Path, ColQwenReference], tmp_path: Path
) -> None:
    folder = copy_of(adapter[0], tmp_path / "adapter")
    assert load(folder).n_patches(2000, 2000) == (8, 8)
    shutil.copy(base / "preprocessor_config.json", folder)
    change_json(folder / "preprocessor_config.json", max_pixels=28 * 28 * 16)
    assert load(folder).n_patches(2000, 2000) == (4, 4)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(folder)


def test_a_flat_configuration_as_of_the_first_releases_is_understood(base: Path, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path / "flat")
    table = json.loads((folder / "config.json").read_text("utf-8"))
    text = table.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types"):
        text.pop(name, None)
    older = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = text | table | {"rope_theta": rope["rope_theta"], "rope_scaling": older}
    (folder / "config.json").write_text(json.dumps(flat), "utf-8")
    same(load(folder), ColQwenReference(base))


@pytest.mark.parametrize(
    "name",
    ["custom_text_proj.weight", "custom_text_proj.bias", "language_model.norm.weight", "visual.merger.mlp.0.bias"],
)
def test_a_missing_tensor_is_named(base: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(base, tmp_path / "spoilt")
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    text = refusal(folder)
    assert name in text
    assert "missing" in text


def with_zeros(name: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def without(*words: str) -> Change:
    """Drop the tensors that have every one of these words in their names."""
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if all(word in name for word in words)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_zeros("embedding_proj_layer.weight", 128, 64), "embedding_proj_layer.weight"),
        (with_zeros("custom_text_proj.weight", 64, 64), "[64, 64]"),
        (with_zeros("base_model.model.custom_text_proj.bias", 128), "same place"),
    ],
)
def test_an_unexpected_or_misshapen_or_second_tensor_is_named(
    base: Path, tmp_path: Path, change: Change, said: str
) -> None:
    folder = copy_of(base, tmp_path / "spoilt")
    change_tensors(folder / "model.safetensors", change)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("custom_text_proj.lora_B"), "custom_text_proj.lora_B.weight"),
        (without("custom_text_proj"), "custom_text_proj.lora_A.weight"),
        (without("layers.1.mlp.up_proj"), "layers.1.mlp.up_proj.lora_A.weight"),
        (without("q_proj"), "layers.0.self_attn.q_proj.lora_A.weight"),
        (with_zeros(f"{PROJECTION}.lora_A.weight", 3, 64), "[3, 64]"),
        (with_zeros(f"{LAYER}.lora_B.weight", 4, 96), "[4, 96]"),
        (with_zeros(f"{LAYER}.lora_magnitude_vector", 4), "lora_magnitude_vector"),
        (with_zeros("base_model.model.lm_head.lora_A.weight", 4, 64), "lm_head"),
        (with_zeros(f"{VISUAL}.attn.q.lora_A.weight", 4, 32), "attn.q"),
        (with_zeros(f"{VISUAL}.attn.qkv.lora_A.weight", 4, 32), "blocks.0.attn.qkv.lora_B.weight"),
        (with_zeros("base_model.model.model.layers.1.mlp.up_proj.lora_A.weight", 4, 64), "same place"),
        (with_zeros("custom_text_proj.lora_A.weight", 4, 64), "unexpected tensor custom_text_proj.lora_A.weight"),
    ],
)
def test_an_adapters_tensors_are_accounted_for(spoil: Callable[..., Path], change: Change, said: str) -> None:
    assert said in refusal(spoil(change))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["custom_text_proj"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"revision": "0123abc"}, "revision"),
        ({"some_later_invention": 3}, "some_later_invention"),
        ({"r": None}, "r is None"),
        ({"target_modules": [1]}, "target_modules"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)  # fmt: skip
def test_what_an_adapter_asks_for_is_understood_or_refused(
    spoil: Callable[..., Path], settings: dict[str, object], said: str
) -> None:
    assert said in refusal(spoil(**settings))


def test_pickled_adapters_are_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    text = refusal(folder)
    assert "adapter_model.bin, which can hide code" in text
    assert "adapter_model.safetensors" in text


def test_a_folder_that_holds_an_adapter_and_a_model_is_refused(base: Path, spoil: Callable[..., Path]) -> None:
    folder = spoil()
    shutil.copy(base / "model.safetensors", folder)
    assert "model.safetensors" in refusal(folder)


def test_code_that_comes_with_an_adapter_is_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.X"}}')
    assert "auto_map" in refusal(folder)


@pytest.mark.parametrize("name", ["./no/such/base", "vidore/colqwen2.5-base"])
def test_an_adapter_without_its_base_says_which_one_it_needs(
    spoil: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = spoil(base_model_name_or_path=name)
    text = refusal(folder)
    assert str(folder) in text
    assert f"base model {name!r}" in text


def test_a_base_that_is_an_adapter_itself_is_refused(
    adapter: tuple[Path, ColQwenReference], spoil: Callable[..., Path]
) -> None:
    text = refusal(spoil(base_model_name_or_path=str(adapter[0])))
    assert str(adapter[0]) in text
    assert "merge it into its base model" in text


def test_code_that_comes_with_the_base_is_refused(base: Path, spoil: Callable[..., Path], tmp_path: Path) -> None:
    coded = copy_of(base, tmp_path / "coded")
    change_json(coded / "config.json", auto_map={"AutoModel": "modeling_x.X"})
    assert "auto_map" in refusal(coded)
    assert "auto_map" in refusal(spoil(base_model_name_or_path=str(coded)))


def test_an_adapter_file_that_is_cut_short_is_refused(spoil: Callable[..., Path]) -> None:
    folder = spoil()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert "adapter_model.safetensors is cut short or no safetensors file" in refusal(folder)


def test_all_halves_are_stored(adapter: tuple[Path, ColQwenReference]) -> None:
    """The fixtures are what they are meant to be: seven linears in each of two layers, and the projection."""
    assert len(load_file(adapter[0] / "adapter_model.safetensors")) == 2 * (2 * 7 + 1)
