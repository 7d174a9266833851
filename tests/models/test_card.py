"""Cards are found by name first, by architecture second, and are refused when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onsight.core.errors import StartError
from onsight.models.card import PixelBudget, card_of_name, cards, find_card, read_card
from onsight.models.hub import bundled_models, locate_model


def folder_with(tmp_path: Path, architecture: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return tmp_path


def test_every_card_in_the_package_can_be_read() -> None:
    names = {"peek", "smolvlm2", "holo1_5", "qwen2_5_vl", "llama3_2_vision", "phi3_5_vision", "colqwen2_5"}
    assert {card.name for card in cards()} >= names
    for card in cards():
        assert card.title
        assert card.licence
        assert card.description


def test_a_name_wins_over_the_architecture(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "Qwen2_5_VLForConditionalGeneration")
    assert find_card("Hcompany/Holo1.5-7B", folder).name == "holo1_5"
    assert find_card(str(tmp_path), folder).name == "qwen2_5_vl"


def test_a_budget_falls_back_on_that_of_chat(tmp_path: Path) -> None:
    card = find_card("Hcompany/Holo1.5-7B", tmp_path)
    assert card.budget("locate") == PixelBudget(max_pixels=1_003_520)
    assert card.budget("ocr") == card.budget("chat") == PixelBudget(max_pixels=8_294_400)


CARD = """
title = "X"
family = "x"
licence = "x"
description = "x"
capabilities = ["chat", "locate", "describe"]
convention = "resized_pixels"
[prompts]
describe = "What is it?"
[prompts.locate]
text = "{target}?"
notation = "pair"
"""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('describe = "', 'caption = "A?"\ndescribe = "', "prompt caption belongs to none"),
        ('describe = "What is it?"', "", "it can describe but has no prompt"),
        ('describe = "', 'locate_al = "A?"\ndescribe = "', "prompt locate_al belongs to none"),
        ('notation = "pair"', "", "need a notation, and no others; locate is wrong"),
        ('notation = "pair"', 'notation = "words"', "notation 'words' of locate"),
        ('convention = "resized_pixels"', "", "prompt locate speaks of places"),
        ("What is it?", "At {x1}?", "prompt describe speaks of places"),
        ('"chat", ', '"fly", ', "unknown capabilities"),
    ],
)
def test_a_card_whose_prompts_no_task_could_use_is_refused(old: str, new: str, why: str) -> None:
    assert read_card("x", CARD).notations == ("pair",)
    with pytest.raises(ValueError, match=why):
        read_card("x", CARD.replace(old, new, 1))


def test_an_unknown_architecture_is_named_beside_the_families_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="LlamaForCausalLM") as caught:
        find_card("x/y", folder_with(tmp_path, "LlamaForCausalLM"))
    for card in cards():
        if card.architectures:
            assert f"{card.title} ({', '.join(card.architectures)})" in str(caught.value)


def test_every_published_model_is_one_of_its_own_card() -> None:
    published = {name: card.name for card in cards() for name in card.published}
    assert len(published) >= 13
    assert {name: getattr(card_of_name(name), "name", None) for name in published} == published


def test_a_name_that_no_card_is_for_has_none() -> None:
    assert card_of_name("org/none") is None


def test_an_adapter_has_its_bases_card(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    folder_with(base, "ColQwen2_5")
    for name in (str(base), "vidore/colqwen2.5-base"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
        card = find_card(str(adapter), adapter)
        assert (card.name, card.capabilities) == ("colqwen2_5", ("embed",))
        assert find_card("Hcompany/Holo1.5-7B", adapter).name == "holo1_5"
    assert find_card("vidore/colqwen2.5-v0.2", tmp_path).name == "colqwen2_5"


def test_a_models_own_architecture_wins_over_that_of_an_adapters_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./no/such/base"}))
    assert find_card(str(tmp_path), folder_with(tmp_path, "ColQwen2_5")).name == "colqwen2_5"


def test_an_adapter_whose_base_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./no/such/base"}))
    with pytest.raises(StartError, match=r"base model './no/such/base'.* there is no model"):
        find_card(str(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"base_model_name_or_path": 5}', "\udcff"])
def test_an_adapter_that_names_no_base_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StartError, match=r"adapter_config\.json"):
        find_card("x/y", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_folder_without_a_readable_config_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StartError):
        find_card("x/y", tmp_path)


def test_models_are_looked_for_in_the_package_then_in_folders(tmp_path: Path) -> None:
    for name in bundled_models():
        assert (locate_model(name) / "config.json").is_file()
    assert locate_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "a/b/c", "../x"])
def test_a_model_that_is_nowhere_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StartError, match=r"no model"):
        locate_model(name)


def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(StartError, match="is a file"):
        locate_model(str(file))
