"""Short words for the tests of embeddings: load a model, embed, compare."""

from __future__ import annotations

from pathlib import Path

import torch

from onsight.core.embedding import Embedding
from onsight.core.messages import Image, Text
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.engines.torch_engine.loading import Checkpoint
from tests.tiny_models import draw

RED, BLUE, GREEN = (200, 0, 0), (0, 0, 220), (0, 150, 0)
ASKED = [
    "", "a", "What colour?", "What colours?", "Where is the red button? Describe the screen.", "Größe 中文 🙂 ",
    "The picture shows a blue square to the left of a green triangle. " * 4,
]  # fmt: skip
SHOWN = [
    draw(RED, 64, 48), draw(BLUE, 300, 40), draw(GREEN, 90, 200), draw(RED, 500, 333), draw(BLUE, 29, 57),
    draw(GREEN, 62, 50),
]  # fmt: skip


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ColQwen:
    return ColQwen(Checkpoint(folder, torch.device("cpu"), dtype))


def embed(model: ColQwen, *inputs: str | Image, **limits: int) -> list[Embedding]:
    prompts = [model.read(Text(one) if isinstance(one, str) else one) for one in inputs]
    for prompt in prompts:
        model.look(prompt)
    return model.embed(prompts, **limits)


def vectors(embedding: Embedding) -> torch.Tensor:
    return torch.tensor(embedding.vectors())


def farthest(embedding: Embedding, expected: torch.Tensor) -> float:
    made = vectors(embedding)
    assert made.shape == expected.shape
    return float((made - expected).abs().max())
