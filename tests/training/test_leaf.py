"""Leaf's bundled folder is whole, small and what the training code says it is, and each stage of the recipe learns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onsight.core.messages import Image, Text
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.models.card import PixelBudget, find_card
from onsight.models.hub import bundled_models, locate_model
from tests.engines.torch_engine.embedding import embed, load, vectors
from tests.tiny_colqwen import write_colqwen
from training.dense import IGNORED
from training.leaf import (
    AFTER_PAGE,
    BEFORE_PAGE,
    DIMS,
    IMAGE,
    LEAF,
    LEAST_PIXELS,
    PagePrompt,
    embed_queries,
    load_tokenizer,
    new_leaf,
    query_ids,
    see,
    to_cells,
    to_patches,
    warm_start,
    write_untrained,
)
from training.lexicon import ASKING_WORDS, CONCEPT_OF, CONCEPTS, WORDS
from training.loop import make_optimisers
from training.matching import Shelf, matching_loss, max_sim
from training.pages import CELL, MOST_PIXELS, Page, PageStyle, draw_page
from training.reading import (
    BLANK,
    NOTHING,
    ReadingHeads,
    ReadingPages,
    concept_of_tokens,
    page_example,
    query_examples,
    read,
)

pytestmark = pytest.mark.model

LIMIT = 12_000_000
QUERIES = ["quarterly income of the harbour office", "Where is the wolf?", "", "zebra: 12 $ 世界"]
STYLE = PageStyle(enlarged=0.3)


@pytest.fixture(scope="module")
def served() -> ColQwen:
    return load(LEAF)


@pytest.fixture(scope="module")
def trained() -> nn.ModuleDict:
    model = new_leaf(load_tokenizer())
    warm_start(model)
    return model.eval()


def as_sent(page: Page) -> Image:
    return Image.of(page.image.tobytes(), *page.image.size)


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in LEAF.rglob("*") if path.is_file()) <= LIMIT


def test_the_code_writes_the_folder_again_but_for_its_weights(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        made, bundled = (json.loads((folder / path.name).read_text("utf-8")) for folder in (tmp_path, LEAF))
        for table in (made, bundled):
            table.pop("transformers_version", None)
        assert made == bundled, path.name


def test_leaf_is_a_name_and_its_card_says_what_the_folder_does() -> None:
    assert "leaf" in bundled_models()
    assert locate_model("leaf") == LEAF
    card = find_card("leaf", LEAF)
    assert (card.name, card.family, card.capabilities) == ("leaf", "colqwen", ("embed",))
    settings = json.loads((LEAF / "preprocessor_config.json").read_text("utf-8"))
    assert card.budget("embed") == PixelBudget(settings["min_pixels"], settings["max_pixels"])
    assert (settings["min_pixels"], settings["max_pixels"]) == (LEAST_PIXELS, MOST_PIXELS)


def test_tensors_are_those_of_a_colqwen(tmp_path: Path) -> None:
    def kinds(folder: Path) -> set[str]:
        return {re.sub(r"\d+", "N", name) for name in load_file(folder / "model.safetensors")}

    assert kinds(LEAF) == kinds(write_colqwen(tmp_path / "colqwen", layout="current"))


def test_weights_stored_in_half_the_bytes_are_loaded_as_they_were_saved(served: ColQwen) -> None:
    stored = load_file(LEAF / "model.safetensors")
    parts = {"language_model": served._language, "visual": served._vision, "custom_text_proj": served._projection}
    loaded = nn.ModuleDict(parts).state_dict()
    assert set(loaded) == set(stored)
    for name, tensor in stored.items():
        assert tensor.dtype == torch.float16
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


def test_every_word_of_the_lexicon_is_one_token_wherever_it_stands() -> None:
    tokenizer = load_tokenizer()
    for word in (*WORDS, *ASKING_WORDS):
        ids = tokenizer.encode(f"{word.title()} or {word}", add_special_tokens=False).ids
        assert len(ids) == 3
        assert ids[0] == ids[2]


def test_queries_and_pages_are_written_as_the_server_writes_them(served: ColQwen) -> None:
    tokenizer = load_tokenizer()
    for text, ids in zip(QUERIES, query_ids(tokenizer, QUERIES), strict=True):
        assert list(served.read(Text(text)).token_ids) == ids
    page = draw_page(1, STYLE)
    image = to_cells(page.image)
    rows, columns = image.height // CELL, image.width // CELL
    prompt = served.read(as_sent(page))
    text = BEFORE_PAGE + IMAGE * (rows * columns) + AFTER_PAGE
    assert list(prompt.token_ids) == tokenizer.encode(text, add_special_tokens=False).ids
    assert torch.equal(prompt.positions, PagePrompt(tokenizer).positions(rows, columns))


def test_training_computes_what_the_server_does(served: ColQwen, trained: nn.ModuleDict) -> None:
    tokenizer = load_tokenizer()
    pages = [draw_page(seed, STYLE) for seed in range(4)]
    images = [to_cells(page.image) for page in pages]
    patches = torch.from_numpy(np.concatenate([to_patches(image) for image in images]))
    grids = torch.tensor([[image.height // 14, image.width // 14] for image in images])
    with torch.no_grad():
        made, present = PagePrompt(tokenizer).embed(trained, see(trained, patches, grids)[1], grids)
        asked = [embed_queries(trained, torch.tensor([ids]))[0] for ids in query_ids(tokenizer, QUERIES)]
    for page, rows, there in zip(pages, made, present, strict=True):
        assert (vectors(embed(served, as_sent(page))[0]) - rows[there]).abs().max() < 2e-4
    for text, rows in zip(QUERIES, asked, strict=True):
        assert (vectors(embed(served, text)[0]) - rows).abs().max() < 2e-4


def test_labels_agree_with_the_page() -> None:
    for seed in range(12):
        page = draw_page(seed, STYLE)
        example = page_example(page)
        names = example["names"]
        written = {word.plain for word in page.words if word.concept is not None}
        named = {WORDS[number] for number in names[(names >= 0) & (names != BLANK)].tolist()}
        assert named <= written
        assert len(named) > 0.95 * len(written)
        drawn = sum(len(word.text) for word in page.words)
        # Narrow neighbours may share a slot, so some characters may be missing; none may be made up.
        assert 0.8 * drawn < (example["characters"] > 0).sum() <= drawn
        assert len(example["pixels"]) == 4 * len(names) == example["grids"].prod()


def test_query_labels_are_the_concepts_asked_for() -> None:
    tokenizer = load_tokenizer()
    made = query_examples(tokenizer, ["who mends the bridge?", "wolf"], concept_of_tokens(tokenizer))
    first, second = made["asked_names"].tolist()
    assert [one for one in first if one not in (NOTHING, IGNORED)] == [CONCEPT_OF["mends"], CONCEPT_OF["bridge"]]
    assert CONCEPT_OF["mends"] == CONCEPT_OF["fixes"]
    assert second.count(NOTHING) == 10
    assert made["asked"].shape == made["asked_names"].shape


def test_max_sim_counts_neither_padding_nor_what_is_not_there() -> None:
    queries = nn.functional.normalize(torch.randn(2, 3, DIMS, generator=torch.Generator().manual_seed(0)), dim=-1)
    pages = queries.clone()
    present = torch.tensor([[True, True, False], [True, True, True]])
    scores = max_sim(queries, torch.tensor([3, 2]), pages, present)
    assert scores[1, 1].item() == pytest.approx(2.0, abs=1e-5)
    assert scores[0, 0].item() == pytest.approx(2.0 + (queries[0, 2] @ queries[0, :2].T).max().item(), abs=1e-5)


@pytest.mark.parametrize("about", [0, 2], ids=["reading", "matching"])
def test_a_few_steps_of_each_stage_lower_its_loss(about: int) -> None:
    tokenizer = load_tokenizer()
    model = new_leaf(tokenizer)
    vision = model["visual"].config
    heads = ReadingHeads(vision.hidden_size, vision.out_hidden_size, DIMS)
    modules: dict[str, nn.Module] = {"model": model, "heads": heads}
    optimisers = make_optimisers(modules, [(list(module.parameters()), 1.0) for module in modules.values()])
    data = ReadingPages(tokenizer, 0, 2, PageStyle(sides=(280, 400), enlarged=0.0), about)
    batch, prompt, losses = data.example(20_000_000), PagePrompt(tokenizer), []
    assert set(batch) >= {"pixels", "grids", "characters", "names", "asked", "asked_names"}
    for _ in range(8):
        made = read(model, heads, prompt, batch)
        loss = matching_loss(made, batch, Shelf(4))[0] if about else made.loss
        losses.append(loss.item())
        loss.backward()
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * group["factor"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    assert losses[-1] < 0.8 * losses[0], losses


def test_pages_that_answer_a_query_as_well_are_no_rivals() -> None:
    tokenizer = load_tokenizer()
    data = ReadingPages(tokenizer, 0, 2, PageStyle(sides=(280, 400), enlarged=0.0), about=1)
    batch = data.example(20_000_000)
    made = read(new_leaf(tokenizer), ReadingHeads(192, 192, DIMS), PagePrompt(tokenizer), batch)
    shelf = Shelf(4)
    before, _ = matching_loss(made, batch, shelf)
    shelf.add(made, torch.ones(2, len(CONCEPTS)))
    assert matching_loss(made, batch, shelf)[0].item() == pytest.approx(before.item(), abs=1e-5)
    shelf.add(made, torch.zeros(2, len(CONCEPTS)))
    assert matching_loss(made, batch, shelf)[0].item() > before.item() + 0.1
