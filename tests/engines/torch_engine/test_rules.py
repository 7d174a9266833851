"""Penalties, forbidden tokens and schemas hold in every family, with a picture and without."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from onsight.core.generation import GenerateRequest
from onsight.core.messages import Image
from tests.engines.fidelity import Tiny
from tests.engines.torch_engine.asking import Answer, answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import draw

pytestmark = pytest.mark.model

PARTS: dict[str, tuple[str | Image, ...]] = {
    "text": ("Say it again and again.",),
    "picture": (draw((200, 0, 0)), "Say it again and again."),
}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"red": {"type": "boolean"}, "where": {"enum": ["left", "right"]}},
        "required": ["red", "where"],
        "additionalProperties": False,
    }
)


@pytest.fixture(params=PARTS)
def parts(request: pytest.FixtureRequest) -> tuple[str | Image, ...]:
    return PARTS[request.param]


def allowed(family: Tiny, rows: int) -> torch.Tensor:
    """[rows of the output head], -inf for what may never be said: media tokens, and ids without text."""
    bias = torch.zeros(rows)
    bias[[token for token in family.family.media_token_ids if token < rows]] = -torch.inf
    bias[family.vocabulary.size :] = -torch.inf
    return bias


def greedy(family: Tiny, request: GenerateRequest, made: Answer) -> list[int]:
    """The tokens that OpenAI's penalties would choose from the logits that the engine saw, worked out once more."""
    assert made.seen is not None
    rules, counts = request.sampling, Counter[int]()
    chosen = []
    for logits in made.seen.logits:
        scores = logits + allowed(family, len(logits))
        for token, times in counts.items():
            scores[token] -= rules.presence_penalty + rules.frequency_penalty * times
        chosen.append(int(scores.argmax()))
        counts[chosen[-1]] += 1
    return chosen


async def test_penalties_change_what_is_said_as_openai_has_it(
    family: Tiny, parts: tuple[str | Image, ...], start: StartEngine
) -> None:
    engine = await start(family.folder)
    texts = set()
    for presence, frequency in ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (-2.0, -2.0)):
        request = asking(turn(*parts), presence_penalty=presence, frequency_penalty=frequency, max_tokens=40)
        made = await answer(engine, request)
        assert made.seen is not None
        assert made.seen.tokens == greedy(family, request, made)
        texts.add(made.text)
    assert len(texts) > 1


async def test_media_tokens_are_never_said(family: Tiny, parts: tuple[str | Image, ...], start: StartEngine) -> None:
    """Drawn so hot that every token is about as likely; unmasked, each would come up."""
    engine = await start(family.folder)
    said = Counter[int]()
    for seed in range(2):
        hot = asking(turn(*parts), temperature=1000.0, seed=seed, max_tokens=250, logprobs=False, top_logprobs=0)
        made = await answer(engine, hot)
        assert made.seen is not None
        said.update(made.seen.tokens)
    assert len(said) > 100
    rows = made.seen.logits.shape[1]
    assert not set(said) & set(allowed(family, rows).isinf().nonzero().flatten().tolist())
    assert max(said) < rows


async def test_a_likely_media_token_is_passed_over(family: Tiny, start: StartEngine) -> None:
    """Where the head has a row for a media token, even the likeliest of all tokens is not said."""
    engine = await start(family.folder)
    made = await answer(engine, asking(turn("x"), max_tokens=1))
    assert made.seen is not None
    rows = made.seen.logits.shape[1]
    media = sorted(token for token in family.family.media_token_ids if token < rows)
    if not media:
        # Llama's head ends before its image token.
        assert family.name == "mllama"
        assert rows == family.vocabulary.require("<|image|>")
        return
    sampler = engine.watch._sampler  # type: ignore[attr-defined]
    logits = made.seen.logits[:1].clone()
    logits[0, media] = 1e6
    assert sampler.choose(logits, [made.seen.sequence])[0].token_id not in media


async def test_answers_keep_to_a_schema(family: Tiny, parts: tuple[str | Image, ...], start: StartEngine) -> None:
    engine = await start(family.folder)
    for rules in ({}, {"temperature": 1.5, "seed": 4}, {"presence_penalty": 1.0, "frequency_penalty": 1.0}):
        made = await answer(engine, asking(turn(*parts), schema=SCHEMA, max_tokens=200, **rules))
        assert made.reason == "stop"
        said = json.loads(made.text)
        assert set(said) == {"red", "where"}
        assert said["red"] in (True, False)
        assert said["where"] in ("left", "right")
        assert made.seen is not None
        assert not set(made.seen.tokens) & family.family.media_token_ids
