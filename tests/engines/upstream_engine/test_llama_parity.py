"""Peek says the same on llama.cpp and on the torch engine, token by token, on screens that fill whole tiles."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="the extra `llama` is not installed")

from onsight.core.generation import Sampling, TextDelta, TokenLogprob
from onsight.core.messages import Image
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.upstream_engine import Child, UpstreamEngine, UpstreamSettings
from onsight.engines.upstream_engine.llama import LlamaOptions, worker
from onsight.models.card import card_of_name
from tests.engines.contract import ask, events_of
from training.draw import Style, draw_screen
from training.export_gguf import MIXTURE, export_gguf
from training.model import BUNDLED

pytestmark = pytest.mark.model

QUESTIONS = ("Describe the screen.", "Read the screen.", "What is in the box (100, 100, 600, 500)?")
SIDES = (512, 256)


@pytest.fixture(scope="module")
def cut_peek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Peek's weights, told to cut pictures: llama.cpp shows every picture as tiles and the whole, even one tile."""
    folder = tmp_path_factory.mktemp("parity") / "peek"
    shutil.copytree(BUNDLED, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"do_image_splitting": True, "size": {"longest_edge": 512}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def kind() -> str:
    """How llama.cpp's file holds the products."""
    return "F32"


@pytest.fixture
async def both(cut_peek: Path, kind: str) -> AsyncIterator[tuple[TorchEngine, UpstreamEngine]]:
    model, mmproj = export_gguf(cut_peek, cut_peek.parent, f"peek-{kind}", kind)
    address, command = worker(LlamaOptions(str(model), str(mmproj), 2048, slots=1, threads=1))
    card = card_of_name("peek")
    assert card is not None
    torch = TorchEngine(cut_peek, card, TorchSettings(dtype="float32", max_num_seqs=1))
    llama = UpstreamEngine(address, Child(command), UpstreamSettings(slots=1))
    await torch.start()
    await llama.start()
    yield torch, llama
    await llama.close()
    await torch.close()


def screen(seed: int, width: int, height: int) -> Image:
    drawn = draw_screen(seed, Style(sides=SIDES)).image.convert("RGB").resize((width, height))
    return Image.of(drawn.tobytes(), width, height)


async def tokens_of(engine: TorchEngine | UpstreamEngine, question: str, image: Image) -> list[TokenLogprob]:
    sampling = Sampling(max_tokens=32, temperature=0.0, logprobs=True)
    events = await events_of(engine, ask(question, image, sampling=sampling))
    return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]


@pytest.mark.parametrize("size", [(512, 512), (512, 256), (256, 512)])
async def test_greedy_tokens_are_the_same_and_as_likely(
    both: tuple[TorchEngine, UpstreamEngine], size: tuple[int, int]
) -> None:
    worst, compared = 0.0, 0
    for seed in range(4):
        image = screen(seed, *size)
        for question in QUESTIONS:
            ours, theirs = [await tokens_of(engine, question, image) for engine in both]
            assert [token.chosen.data for token in theirs] == [token.chosen.data for token in ours]
            compared += len(ours)
            pairs = zip(ours, theirs, strict=True)
            worst = max(worst, *(abs(one.chosen.logprob - other.chosen.logprob) for one, other in pairs))
    print(f"{size}: {compared} tokens, largest difference of a log-probability {worst:.4f}")
    assert compared > 100
    assert worst <= 0.05


@pytest.mark.parametrize("kind", [MIXTURE])
async def test_the_usual_mixture_of_our_making_is_read(both: tuple[TorchEngine, UpstreamEngine]) -> None:
    """Weights of 4 bits change some tokens; up to the first one that differs they are about as likely."""
    same, apart = [], []
    for seed in range(4):
        image = screen(seed, 512, 512)
        for question in QUESTIONS:
            ours, theirs = [await tokens_of(engine, question, image) for engine in both]
            pairs = [(one.chosen, other.chosen) for one, other in zip(ours, theirs, strict=False)]
            until = next((place for place, (one, other) in enumerate(pairs) if one.data != other.data), len(pairs))
            same += [True] * until + [False] * (until < len(pairs))
            apart += [abs(one.logprob - other.logprob) for one, other in pairs[:until]]
    print(f"{len(same)} tokens, the same {sum(same) / len(same):.3f}, apart {sum(apart) / len(apart):.4f}")
    assert len(same) > 100
    assert sum(same) / len(same) > 0.9
    assert sum(apart) / len(apart) < 0.1
