"""ColQwen2.5's vectors are colpali_engine's, whoever shares a forward with whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from onsight.core.embedding import NO_IMAGE, ImageSpan
from onsight.core.errors import ContextTooLong, InvalidMedia, InvalidRequest, StartError
from onsight.core.messages import Image, ImageOptions, Text
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.engines.torch_engine.families.qwen_images import QwenImages
from onsight.engines.torch_engine.prompt import ImagePlan
from onsight.engines.torch_engine.scoring import max_sim
from onsight.models.card import find_card
from tests.colpali_vectors import PAGES, QUERIES, SIZES, VECTORS
from tests.engines.fidelity import note
from tests.engines.torch_engine.colqwen_reference import ColQwenReference
from tests.engines.torch_engine.embedding import ASKED, BLUE, GREEN, RED, SHOWN, embed, farthest, load, vectors
from tests.tiny_colqwen import LAYOUTS, change_json, copy_of, write_colqwen
from tests.tiny_models import draw

pytestmark = pytest.mark.model

EXACT = 1e-5
MATES = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "colqwen")


@pytest.fixture(scope="module")
def model(folder: Path) -> ColQwen:
    return load(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ColQwenReference:
    return ColQwenReference(write_colqwen(tmp_path_factory.mktemp("models") / "current", layout="current"))


def test_vectors_and_tokens_are_those_that_colpali_engine_made(model: ColQwen) -> None:
    stored = load_file(VECTORS)
    names = [f"query_{number}" for number in range(len(QUERIES))] + [f"page_{number}" for number in range(len(PAGES))]
    inputs = [*QUERIES, *PAGES]
    for name, one, made in zip(names, inputs, embed(model, *inputs), strict=True):
        ids = model.read(Text(one) if isinstance(one, str) else one).token_ids
        assert ids == stored[f"{name}_ids"].tolist()
        assert farthest(made, stored[name]) <= EXACT


def test_scores_and_patches_are_those_of_colpali_engine(model: ColQwen, usual: ColQwen) -> None:
    stored = load_file(VECTORS)
    made = embed(model, *QUERIES, *PAGES)
    scores = torch.tensor(max_sim(made[: len(QUERIES)], made[len(QUERIES) :]))
    assert scores.shape == stored["scores"].shape == (2, 2)
    assert (scores - stored["scores"]).abs().max() <= EXACT
    assert len(SIZES) == len(set(SIZES)) == 50
    assert [usual.n_patches(*size) for size in SIZES] == [tuple(grid) for grid in stored["patches"].tolist()]


@pytest.mark.fidelity
@pytest.mark.parametrize("together", [True, False])
def test_queries_and_pages_are_those_of_the_reference(
    model: ColQwen,
    reference: ColQwenReference,
    together: bool,
    record_property: Callable[[str, object], None],
) -> None:
    expected = [*reference.queries(ASKED), *reference.pages(SHOWN)]
    inputs = [*ASKED, *SHOWN]
    made = embed(model, *inputs) if together else [embed(model, one)[0] for one in inputs]
    apart = max(farthest(one, other) for one, other in zip(made, expected, strict=True))
    note(record_property, "ColQwen2.5", "queries and pages", apart)


@pytest.mark.fidelity
def test_what_shares_a_forward_changes_nothing(model: ColQwen, record_property: Callable[[str, object], None]) -> None:
    inputs = [*ASKED, *SHOWN, "What colour is it?", "What colour is the circle?", draw(BLUE, 60, 90)]
    alone = [vectors(embed(model, one)[0]) for one in inputs]
    mates = [embed(model, *inputs), embed(model, *inputs[::-1])[::-1], embed(model, *inputs[4:])]
    mates += [embed(model, *inputs, batch_tokens=50)]
    apart = max(
        farthest(one, other) for made in mates for one, other in zip(made, alone[len(alone) - len(made) :], strict=True)
    )
    note(record_property, "ColQwen2.5", "batch mates", apart)
    assert apart <= MATES


def test_a_forward_takes_inputs_of_like_length_and_no_more_tokens_than_allowed(model: ColQwen) -> None:
    forwards: list[tuple[int, int]] = []

    def watch(module: nn.Module, _: object, output: BaseModelOutputWithPast) -> None:
        if isinstance(module, Qwen2_5_VLTextModel):
            rows, tokens, _ = output.last_hidden_state.shape
            forwards.append((rows, tokens))

    lengths = sorted(len(model.read(Text(one)).token_ids) for one in ASKED)
    hook = nn.modules.module.register_module_forward_hook(watch)
    try:
        for batch_tokens in (1, 30, 1000):
            forwards.clear()
            embed(model, *ASKED, batch_tokens=batch_tokens)
            assert sum(rows for rows, _ in forwards) == len(ASKED)
            assert all(rows == 1 or rows * tokens <= batch_tokens for rows, tokens in forwards)
            assert sum(rows * tokens for rows, tokens in forwards) <= 1.25 * sum(lengths)
    finally:
        hook.remove()
    assert max(rows for rows, _ in forwards) > 1


def test_every_vector_has_length_one_and_no_row_is_padding(model: ColQwen) -> None:
    inputs = [*ASKED, *SHOWN]
    for one, made in zip(inputs, embed(model, *inputs), strict=True):
        prompt = model.read(Text(one) if isinstance(one, str) else one)
        assert (made.rows, made.dims) == (len(prompt.token_ids), 128)
        assert torch.allclose(vectors(made).norm(dim=1), torch.ones(made.rows), atol=1e-5)


def test_a_page_says_where_its_image_is(model: ColQwen, reference: ColQwenReference) -> None:
    for page, made in zip(SHOWN, embed(model, *SHOWN), strict=True):
        columns, rows = model.n_patches(page.width, page.height)
        ids = torch.tensor(model.read(page).token_ids)
        places = (ids == model.image_token_id).nonzero().flatten().tolist()
        assert places == list(range(places[0], places[0] + columns * rows))
        assert made.image == ImageSpan(places[0], columns * rows, columns)
    assert {made.image for made in embed(model, *ASKED)} == {NO_IMAGE}


def test_a_picture_changes_its_own_vectors_and_what_comes_after_it_alone(model: ColQwen) -> None:
    red, again, blue = embed(model, draw(RED, 64, 48), draw(RED, 64, 48), draw(BLUE, 64, 48))
    assert farthest(red, vectors(again)) == 0
    start = red.image.start
    assert torch.equal(vectors(red)[:start], vectors(blue)[:start])
    assert ((vectors(red) - vectors(blue)).abs().amax(dim=1)[start:] > 1e-3).all()


@pytest.mark.parametrize(
    "typed", ["<|image_pad|>", "a <|vision_start|><|image_pad|><|vision_end|>", "<|endoftext|>", "<|im_start|>user\n"]
)
def test_typed_special_tokens_are_plain_characters(model: ColQwen, typed: str) -> None:
    ids = model.read(Text(typed)).token_ids
    special = [model.read(SHOWN[0]).token_ids[0], model.image_token_id, ids[-1]]
    assert not set(ids[:-10]) & set(special)
    assert ids[-10:] == ids[-1:] * 10
    assert embed(model, typed)[0].image == NO_IMAGE


@pytest.mark.parametrize("size", SIZES[:30])
def test_pages_are_prepared_as_by_the_image_processor(
    model: ColQwen, reference: ColQwenReference, size: tuple[int, int]
) -> None:
    page = draw(GREEN, *size)
    prompt = model.read(page)
    model.look(prompt)
    (span,) = prompt.spans
    made = reference.process([page])
    _, rows, columns = made["image_grid_thw"][0].tolist()
    assert span.pixels is not None
    assert torch.equal(span.pixels.values, made["pixel_values"])
    assert prompt.token_ids.count(model.image_token_id) == rows * columns // 4
    assert model.n_patches(*size) == (columns // 2, rows // 2)


@pytest.fixture(scope="module")
def usual(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ColQwen:
    """With Qwen's own bounds in its settings, which the family lowers to 768 tokens a page."""
    copy = copy_of(folder, tmp_path_factory.mktemp("models") / "usual")
    change_json(copy / "preprocessor_config.json", min_pixels=3136, max_pixels=12845056)
    return load(copy)


@pytest.mark.parametrize(
    ("size", "grid"), [((512, 512), (18, 18)), ((1024, 768), (32, 24)), ((768, 1024), (24, 32)), ((10, 10), (2, 2))]
)
def test_patches_of_known_sizes(usual: ColQwen, size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert usual.n_patches(*size) == grid


@pytest.mark.parametrize("size", SIZES[:30])
def test_patches_follow_smart_resize_up_to_768_tokens(usual: ColQwen, size: tuple[int, int]) -> None:
    height, width = smart_resize(size[1], size[0], factor=28, min_pixels=3136, max_pixels=602112)
    assert usual.n_patches(*size) == (width // 28, height // 28)
    assert usual.read(draw(RED, *size)).token_ids.count(usual.image_token_id) == width * height // 28**2 <= 768


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_size_that_nothing_has_is_refused(usual: ColQwen, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match=f"{size[0]}x{size[1]} px is no picture's size"):
        usual.n_patches(*size)


def test_a_page_that_is_too_stretched_is_refused(usual: ColQwen) -> None:
    with pytest.raises(InvalidMedia, match="402x2") as caught:
        usual.n_patches(402, 2)
    assert caught.value.param == "input"
    with pytest.raises(InvalidMedia):
        usual.read(draw(RED, 2, 402))


def test_options_of_a_page_are_honoured(usual: ColQwen) -> None:
    page = draw(RED, 1400, 1000)

    def tokens(**options: object) -> int:
        asked = replace(page, options=ImageOptions(**options))  # type: ignore[arg-type]
        return usual.read(asked).token_ids.count(usual.image_token_id)

    assert tokens() == tokens(detail="high") == usual.n_patches(1400, 1000)[0] * usual.n_patches(1400, 1000)[1]
    assert 256 < tokens(detail="low") <= 512 < tokens()
    assert tokens(max_pixels=28 * 28 * 100) <= 100
    assert 768 < tokens(max_pixels=28 * 28 * 900) <= 900
    with pytest.raises(InvalidRequest, match="max_pixels is 700") as caught:
        tokens(max_pixels=700)
    assert caught.value.param == "input.max_pixels"


def test_what_is_longer_than_the_context_is_refused(model: ColQwen) -> None:
    assert (model.context_tokens, model.merge) == (1024, 2)
    with pytest.raises(ContextTooLong, match="1024"):
        model.read(Text("colour " * 3000))


def test_a_page_past_the_context_is_refused_before_its_tokens_are_written(
    model: ColQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(self: QwenImages, image: Image) -> ImagePlan:
        pytest.fail("a page that cannot fit was planned")

    monkeypatch.setattr(QwenImages, "plan", unwanted)
    monkeypatch.setattr(model, "context_tokens", 40)
    page = replace(SHOWN[0], options=ImageOptions(min_pixels=28 * 28 * 50))
    for ask in (model.read, model.page_bytes):
        with pytest.raises(ContextTooLong, match="at most 40"):
            ask(page)


@pytest.mark.parametrize("options", [ImageOptions(), ImageOptions(min_pixels=28 * 28 * 50), ImageOptions("low")])
def test_what_a_page_takes_when_it_is_prepared_is_known_before(usual: ColQwen, options: ImageOptions) -> None:
    for shown in SHOWN:
        page = replace(shown, options=options)
        prompt = usual.read(page)
        usual.look(prompt)
        (span,) = prompt.spans
        assert span.pixels is not None
        assert usual.page_bytes(page) == span.pixels.values.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_age_of_tensor_names_is_understood(model: ColQwen, tmp_path: Path, layout: str) -> None:
    other = load(write_colqwen(tmp_path / layout, layout=layout))
    for made, expected in zip(embed(other, *ASKED, *SHOWN), embed(model, *ASKED, *SHOWN), strict=True):
        assert farthest(made, vectors(expected)) == 0


def test_bfloat16_runs_and_is_close(folder: Path, model: ColQwen) -> None:
    for made, exact in zip(
        embed(load(folder, torch.bfloat16), *ASKED, *SHOWN), embed(model, *ASKED, *SHOWN), strict=True
    ):
        likeness = (vectors(made) * vectors(exact)).sum(dim=1)
        assert likeness.min() > 0.98


def test_nothing_asked_is_nothing_answered(model: ColQwen) -> None:
    assert model.embed([]) == []


async def test_the_chat_engine_says_that_it_has_no_such_family(folder: Path) -> None:
    engine = TorchEngine(folder, find_card(str(folder), folder), TorchSettings(device="cpu"))
    with pytest.raises(StartError, match="no family 'colqwen'"):
        await engine.start()
    await engine.close()
