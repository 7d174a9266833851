"""Phi-3.5-vision, our own port: its prompt, its grid of crops, its two sets of rotary factors, its original tensors."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from onsight.core.errors import InvalidMedia, StartError, Unsupported
from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.long_rope import LONG, LongRope
from onsight.engines.torch_engine.families.phi3_images import cut, fit
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prompt import Prompt
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.torch_engine.asking import answer, asking, check, expectations, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.phi3_reference import DEVIATION, MEAN, Phi3Reference, token_count, views
from tests.tiny_models import draw
from tests.tiny_phi3 import CLIP, write_phi3

pytestmark = pytest.mark.model

RED, BLUE, GREEN = draw((200, 0, 0)), draw((0, 0, 220), 96, 40), draw((0, 150, 0), 40, 90)


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose short factors end after 96 tokens, so that pictures and answers cross over."""
    return write_phi3(tmp_path_factory.mktemp("models") / "turning", short_tokens=96)


# The prompt


def text_of(folder: Path, *messages: object) -> str:
    """What the template makes, pictures as [picture]."""
    pieces = ChatTemplate(folder, "<|image_{number}|>").render(messages)  # type: ignore[arg-type]
    return "".join("[picture]" if isinstance(piece, Image) else piece.text for piece in pieces)


def test_a_prompt_is_microsofts_with_every_stretch_of_text_opened(phi3: Path) -> None:
    assert text_of(phi3, turn(RED, BLUE, "Compare.")) == (
        "<s><|user|>\n[picture]<s>\n[picture]<s>\nCompare.<|end|>\n<|assistant|>\n"
    )
    talk = [turn("Be brief.", role="system"), turn("What ", RED, "?"), turn("A box.", role="assistant"), turn("Sure?")]
    assert text_of(phi3, *talk) == (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nWhat [picture]<s>\n?<|end|>\n"
        "<|assistant|>\nA box.<|end|>\n<|user|>\nSure?<|end|>\n<|assistant|>\n"
    )


def test_a_tokenizer_without_an_opening_token_is_obeyed(phi3: Path, tmp_path: Path) -> None:
    table = json.loads((phi3 / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(table))
    assert text_of(tmp_path, turn(RED, "?")) == "<|user|>\n[picture]\n?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("text", ["", " ", "\n\n", " a  b ", "ends with blank ", "\ttabs", "Größe 中文 🙂", "1234 5,6"])
async def test_text_is_tokenised_piece_by_piece(
    text: str, phi3: Path, phi3_reference: Phi3Reference, start: StartEngine
) -> None:
    messages = (turn(text), turn("x", text, RED, text, role="assistant"), turn(text, "y"))
    engine = await start(phi3, max_num_seqs=1)
    check(await answer(engine, asking(*messages, max_tokens=2)), phi3_reference.generate(messages, 2), phi3_reference)


def test_bytes_come_together_and_the_first_blank_goes(phi3: Path) -> None:
    vocabulary = Vocabulary(phi3)
    for text in ("Größe 中文 🙂", " two blanks", "a\nb"):
        stream = TextStream(vocabulary, ())
        assert "".join(map(stream.push, vocabulary.encode([(text, False)]))) + stream.finish() == text


def test_a_token_that_swallows_blanks_swallows_the_users_too(phi3: Path, tmp_path: Path) -> None:
    table = json.loads((phi3 / "tokenizer.json").read_text())
    for token in table["added_tokens"]:
        token["rstrip"] = token["content"] == "<|user|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    vocabulary = Vocabulary(tmp_path)
    wanted = vocabulary.encode([("<|user|>", True), ("red ", False), ("<|end|>\n", True)])
    assert vocabulary.encode([("<|user|>\n", True), ("\n  red ", False), ("<|end|>\n", True)]) == wanted
    assert wanted == vocabulary._full.encode("<|user|>\n\n  red <|end|>\n", add_special_tokens=False).ids


# The picture


@pytest.mark.parametrize("most", [1, 4, 16])
@pytest.mark.parametrize(
    "size",
    [(336, 336), (1920, 1080), (1080, 1920), (640, 480), (50, 800), (2000, 100), (337, 336), (1, 1), (1300, 999)],
)
def test_crops_and_their_pixels_are_the_processors(size: tuple[int, int], most: int) -> None:
    picture = PIL.Image.linear_gradient("L").resize(size).convert("RGB")
    picture.paste((200, 30, 10), (size[0] // 4, size[1] // 3, size[0], size[1]))
    wanted, rows, columns = views(picture, most, 28)
    chosen = fit(*size, most, 28)
    assert (chosen.rows, chosen.columns) == (rows, columns)
    assert chosen.rows * chosen.columns <= most
    assert torch.equal(cut(picture, chosen, 28, MEAN, DEVIATION), wanted)


@pytest.mark.parametrize(
    ("size", "most", "crops", "tokens"),
    [
        ((336, 336), 16, (4, 4), 2509),
        ((1920, 1080), 16, (3, 5), 2353),
        ((1080, 1920), 16, (5, 3), 2377),
        ((1920, 1080), 4, (2, 2), 757),
        ((640, 480), 16, (3, 4), 1921),
        ((640, 480), 1, (1, 1), 313),
        ((50, 800), 16, (16, 1), 2653),
        ((800, 50), 16, (1, 16), 2473),
    ],
)
def test_token_counts_of_the_real_model(size: tuple[int, int], most: int, crops: tuple[int, int], tokens: int) -> None:
    chosen = fit(*size, most, 336)
    assert (chosen.rows, chosen.columns) == crops
    assert token_count(*crops) == tokens


def test_a_picture_is_padded_with_white_above_and_below() -> None:
    wide = PIL.Image.new("RGB", (56, 30), (255, 0, 0))
    chosen = fit(56, 30, 4, 28)
    assert (chosen.width, chosen.height, chosen.rows, chosen.columns) == (56, 30, 2, 2)
    values = cut(wide, chosen, 28, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert values.shape == (5, 3, 28, 28)
    green = torch.cat([values[1, 1], values[3, 1]])  # [56, 28]: white where the picture is not
    assert (green[:, 0] == 1).nonzero().flatten().tolist() == [*range(13), *range(43, 56)]


async def test_detail_sets_the_crops_and_pixel_bounds_are_refused(phi3: Path, start: StartEngine) -> None:
    engine = await start(phi3)

    async def tokens(*details: str) -> int:
        pictures = [draw((200, 0, 0), options=ImageOptions(detail=detail)) for detail in details]  # type: ignore[arg-type]
        return (await answer(engine, asking(turn(*pictures), max_tokens=1))).usage.image_tokens

    few, many, one = token_count(2, 2, 2), token_count(3, 4, 2), token_count(1, 1, 2)
    assert [await tokens("auto"), await tokens("high"), await tokens("low")] == [many, many, one]
    assert await tokens("auto", "auto") == 2 * few
    assert await tokens("high", "low") == many + one
    for name in ("min_pixels", "max_pixels"):
        with pytest.raises(Unsupported) as caught:
            await answer(engine, asking(turn(draw((1, 2, 3), options=ImageOptions(**{name: 5000})))))
        assert caught.value.param == f"messages.image_url.{name}"
    with pytest.raises(InvalidMedia, match="2000x1"):
        await answer(engine, asking(turn(Image.of(bytes(6000), 2000, 1))))


# The rotary factors


async def test_every_request_turns_by_its_own_length(turning: Path, start: StartEngine) -> None:
    reference = Phi3Reference(turning)
    requests = [
        asking(turn(RED, "What colour?"), max_tokens=40),  # crosses while it answers
        asking(turn("Short."), max_tokens=30),  # short to its end
        asking(turn(BLUE, GREEN, "Compare " + "them, please, " * 8), max_tokens=10),  # long from the start
        asking(turn("A " + "long text " * 30), max_tokens=10),
        asking(turn(GREEN, "And this?"), max_tokens=50),
    ]
    expected = expectations(reference, requests)
    lengths = [(len(one.prompt), len(one.prompt) + len(one.tokens)) for one in expected]
    assert any(first < 96 < last for first, last in lengths)
    assert any(last < 96 for _, last in lengths)
    assert any(first > 96 for first, _ in lengths)
    engine = await start(turning, max_num_seqs=3)
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    for ours, theirs in zip(made, expected, strict=True):
        check(ours, theirs, reference)


async def test_short_keys_are_not_reused_by_a_long_request(turning: Path, start: StartEngine) -> None:
    reference = Phi3Reference(turning)
    engine = await start(turning, max_num_seqs=3)
    words = "Look at this picture and say what you see, and then some more words, and a few more words, "
    short, long = turn(words), turn(words + words + words)
    reused = []
    for message in (short, long, short, long):
        request = asking(message, max_tokens=4)
        made = await answer(engine, request)
        check(made, reference.generate(request.messages, 4), reference)
        reused.append(made.usage.cached_tokens)
    assert reused[:2] == [0, 0]
    assert min(reused[2:]) > 16


def test_the_factors_are_transformers_own(turning: Path) -> None:
    config = Phi3Reference(turning).lm.config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    theirs, ours = Phi3RotaryEmbedding(config), LongRope(config)
    embeds = torch.zeros(1, 1, 64)
    for count, offset in ((90, 0), (96, 0), (97, LONG), (300, LONG)):
        positions = torch.arange(count)[None]
        for one, other in zip(theirs(embeds, positions), ours(embeds, positions + offset), strict=True):
            assert torch.equal(one, other)


def test_a_prompt_says_how_long_its_positions_hold(turning: Path) -> None:
    checkpoint = Checkpoint(turning, torch.device("cpu"), torch.float32)
    family = load_family("phi3_vision", checkpoint, Vocabulary(turning))
    short, long = Prompt([5] * 96, [5] * 96), Prompt([5] * 97, [5] * 97)
    family.place(short)
    family.place(long)
    assert (short.placed_for, short.delta, short.identity[0]) == (96, 0, 5)
    assert (long.placed_for, long.delta) == (None, LONG)
    assert long.identity[0] < -(1 << 60)
    assert long.positions.tolist() == [[LONG + place for place in range(97)]]


# The tensors


@pytest.fixture
def spoil(phi3: Path, tmp_path: Path) -> Callable[..., Path]:
    """`spoil(change)` is a copy of the checkpoint whose tensors went through `change`."""

    def spoil(change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
        folder = tmp_path / "spoilt"
        shutil.copytree(phi3, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(table | config))
        return folder

    return spoil


async def refusal(folder: Path) -> str:
    engine = TorchEngine(folder, find_card("x", folder), TorchSettings(device="cpu"))
    with pytest.raises(StartError) as caught:
        await engine.start()
    await engine.close()
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.vision_embed_tokens.glb_GN",
        "model.vision_embed_tokens.sub_GN",
        "model.vision_embed_tokens.img_projection.2.bias",
        "model.vision_embed_tokens.img_processor.vision_model.embeddings.class_embedding",
        "model.vision_embed_tokens.img_processor.vision_model.pre_layrnorm.weight",
        "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.2.self_attn.q_proj.weight",
        "model.vision_embed_tokens.img_processor.vision_model.post_layernorm.bias",
    ],
)
async def test_a_missing_tensor_is_refused_by_name(name: str, spoil: Callable[..., Path]) -> None:
    assert name in await refusal(spoil(lambda tensors: tensors.pop(name)))


async def test_an_unexpected_tensor_and_a_wrong_shape_are_refused_by_name(spoil: Callable[..., Path]) -> None:
    extra = "model.vision_embed_tokens.img_projection.4.weight"
    folder = spoil(lambda tensors: tensors.update({extra: torch.zeros(2)}))
    assert extra in await refusal(folder)
    shutil.rmtree(folder)
    assert "sub_GN" in await refusal(
        spoil(lambda tensors: tensors.update({"model.vision_embed_tokens.sub_GN": torch.zeros(1, 1, 64)}))
    )


async def test_the_word_table_may_be_stored_under_the_image_embeddings_name(
    phi3: Path, spoil: Callable[..., Path], start: StartEngine
) -> None:
    folder = spoil(
        lambda tensors: tensors.update(
            {"model.vision_embed_tokens.wte.weight": tensors.pop("model.embed_tokens.weight")}
        )
    )
    request = asking(turn(RED, "What colour?"))
    assert (await answer(await start(folder), request)).text == (await answer(await start(phi3), request)).text


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"embd_layer": {"hd_transform_order": "glb_sub", "use_hd_transform": True}}, "glb_sub"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn"),
        ({"sliding_window": 100}, "sliding-window"),
        ({"img_processor": {"layer_idx": -40, "vision_config": CLIP}}, "-40"),
    ],
)
async def test_what_the_port_does_not_do_is_refused(
    config: dict[str, object], word: str, spoil: Callable[..., Path]
) -> None:
    assert word in await refusal(spoil(lambda tensors: None, **config))


async def test_bfloat16_runs(phi3: Path, start: StartEngine) -> None:
    engine = await start(phi3, dtype="bfloat16")
    assert (await answer(engine, asking(turn(RED, "What colour?")))).usage.completion_tokens
