"""Llama 3.2 Vision's own ways: which prefixes it may share, its tiles, what its text sees, its tensors' old names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onsight.core.errors import InvalidRequest, StartError, Unsupported
from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine import kv_cache
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.families.key_values import CrossShape, KeyValueShape
from onsight.engines.torch_engine.families.mllama import Mllama
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prompt import lay_out
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary
from tests.engines.torch_engine.asking import answer, asking, check, expectations, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.reference import MllamaReference
from tests.tiny_models import draw

pytestmark = pytest.mark.model

RED, BLUE, GREEN = draw((200, 0, 0)), draw((0, 0, 220), 96, 40), draw((0, 150, 0), 20, 90)
SMALL = draw((120, 0, 120), 24, 24)


@pytest.fixture(scope="module")
def family(mllama: Path) -> Mllama:
    return Mllama(Checkpoint(mllama, torch.device("cpu"), torch.float32), Vocabulary(mllama))


async def test_cached_features_and_prefixes_change_nothing(
    mllama: Path, mllama_reference: MllamaReference, start: StartEngine
) -> None:
    engine = await start(mllama, max_num_seqs=2)
    words = "Look at this, and say at length what you see in it: "
    requests = [
        asking(turn(RED, words + "what colour?")),
        asking(turn(RED, words + "what colour?")),
        asking(turn(RED, words + "what shape?")),
        asking(turn(BLUE, words + "what shape?")),
        asking(turn(RED, words + "what colour?"), turn("White.", role="assistant"), turn("And ", BLUE, "?")),
        asking(turn(words + "nothing?")),
        asking(turn(RED, words + "what?"), turn("White.", role="assistant"), turn("And ", BLUE, "now?")),
    ]
    cached = []
    for request, expected in zip(requests, expectations(mllama_reference, requests), strict=True):
        made = await answer(engine, request)
        check(made, expected, mllama_reference)
        cached.append(made.usage.cached_tokens)
    assert min(cached[1], cached[2], cached[6]) >= 16
    assert cached[0] == cached[3] == cached[4] == cached[5] == 0
    status = engine.status()
    assert (status.image_cache_hits_total, status.image_cache_misses_total) == (6, 2)


async def test_the_published_tensor_names_are_understood(
    mllama: Path, mllama_reference: MllamaReference, start: StartEngine, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(mllama, folder)
    renamed = {_published(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    request = asking(turn(RED, "What colour?"))
    made = await answer(await start(folder), request)
    check(made, mllama_reference.generate(request.messages, 12), mllama_reference)


def _published(name: str) -> str:
    if name.startswith("lm_head."):
        return "language_model." + name
    return name.replace("model.language_model.", "language_model.model.", 1).removeprefix("model.")


async def test_what_cannot_be_honoured_is_refused(mllama: Path, start: StartEngine) -> None:
    engine = await start(mllama)
    with pytest.raises(InvalidRequest, match="5 pictures in one request; this model sees at most 4"):
        await answer(engine, asking(turn(RED, RED, BLUE, GREEN, RED, "?")))
    with pytest.raises(Unsupported, match="max_pixels"):
        await answer(engine, asking(turn(draw((1, 2, 3), options=ImageOptions(max_pixels=99)), "?")))


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (8, 8), (32, 32), (33, 32), (64, 48), (48, 64), (96, 40), (20, 90), (300, 10), (10, 300), (500, 400)],
)
def test_tiles_are_those_of_transformers(
    family: Mllama, mllama_reference: MllamaReference, width: int, height: int
) -> None:
    image = draw((9, 90, 200), width, height)
    plan = family.plan(image)
    ours = family.prepare(plan).values
    inputs = mllama_reference.inputs([turn(image)])
    assert torch.equal(ours, inputs["pixel_values"][0, 0])
    assert plan.grid[0] * plan.grid[1] == int(inputs["aspect_ratio_mask"].sum())
    low = family.plan(replace(image, options=ImageOptions(detail="low")))
    assert (low.grid, family.prepare(low).values.shape) == ((1, 1), ours.shape)
    assert low.key != plan.key or plan.settings == low.settings


def test_text_sees_a_picture_from_its_place_to_the_next(family: Mllama, mllama: Path) -> None:
    images = [RED, SMALL, BLUE]
    plans = [family.plan(image) for image in images]
    template, vocabulary = ChatTemplate(mllama, family.image_text, family.chat_template), Vocabulary(mllama)
    prompt = lay_out((turn("a", RED, SMALL, "b", BLUE, "c"),), template, vocabulary, plans, {family.image_token_id})
    family.place(prompt)
    assert prompt.seen is not None
    assert prompt.seen.shape == (len(prompt.token_ids), 12)
    first, second, third = (span.start for span in prompt.spans)
    tiles = [plan.grid[0] * plan.grid[1] for plan in plans]
    assert prompt.seen[:first].sum() == 0
    assert prompt.seen[first].sum() == tiles[0]
    assert all(prompt.seen[place].sum() == tiles[0] + tiles[1] for place in range(second, third))
    assert all(prompt.seen[place].sum() == tiles[2] for place in range(third, len(prompt.token_ids)))
    assert prompt.image_tokens == 3


def test_only_the_same_pictures_in_the_same_order_share_a_beginning(family: Mllama, mllama: Path) -> None:
    def beginning(*parts: str | Image) -> int:
        messages = (turn(*parts),)
        plans = [family.plan(image) for image in messages[0].images]
        template = ChatTemplate(mllama, family.image_text, family.chat_template)
        prompt = lay_out(messages, template, Vocabulary(mllama), plans, {family.image_token_id})
        family.place(prompt)
        return prompt.identity[0]

    assert beginning(RED, "a") == beginning("b", RED)
    assert len({beginning("a"), beginning(RED), beginning(BLUE), beginning(RED, BLUE), beginning(BLUE, RED)}) == 5


def test_places_for_pictures_are_counted_when_memory_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, settings = torch.device("cpu"), TorchSettings(max_num_seqs=2)
    shape = KeyValueShape(4, 2, 16, CrossShape(2, 4, 4, 17))
    pictures = 2 * 2 * 2 * 16 * (4 * 4 * 17) * 4 * settings.max_num_seqs
    tokens = 2 * 4 * 2 * 16 * 4 * 300 * settings.max_num_seqs
    monkeypatch.setattr(kv_cache, "free_bytes", lambda device: 2 * (pictures + tokens))
    assert kv_cache.fit(shape, 4096, settings, cpu, torch.float32).tokens == 300
    assert kv_cache.fit(replace(shape, cross=None), 4096, settings, cpu, torch.float32).tokens > 300
    monkeypatch.setattr(kv_cache, "free_bytes", lambda device: pictures)
    with pytest.raises(StartError, match=r"beside .* GiB for their pictures"):
        kv_cache.fit(shape, 4096, settings, cpu, torch.float32)
