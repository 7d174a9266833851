"""Tokens are drawn as the rules say: statistics, seeds, penalties, and what is never drawn."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from onsight.core.generation import Sampling
from onsight.engines.torch_engine import sampling
from onsight.engines.torch_engine.prompt import Prompt
from onsight.engines.torch_engine.sampling import Sampler
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.reference import SmolVLMReference
from tests.tiny_models import SMOLVLM_SPECIALS, draw

pytestmark = pytest.mark.model

LOGITS = torch.tensor([2.0, 1.0, 0.0, 0.5, -1.0, 1.5, 3.0, -30.0])
DRAWS, ROWS = 4000, 200


@pytest.fixture(scope="module")
def vocabulary(smolvlm: Path) -> Vocabulary:
    return Vocabulary(smolvlm)


def sequence(**rules: object) -> Sequence:
    from onsight.engines.torch_engine.detokenizer import TextStream

    return Sequence(Prompt([], []), Sampling(**rules), 10, TextStream.__new__(TextStream))  # type: ignore[arg-type]


def draw_many(sampler: Sampler, logits: torch.Tensor, **rules: object) -> Counter[int]:
    """`DRAWS` tokens from `ROWS` seeds."""
    rows = [sequence(seed=seed, **rules) for seed in range(ROWS)]
    batch = logits.repeat(ROWS, 1)
    return Counter(token for _ in range(DRAWS // ROWS) for token in take(sampler, batch, rows))


def take(sampler: Sampler, logits: torch.Tensor, rows: list[Sequence]) -> list[int]:
    """The next token of each row, appended to its answer."""
    tokens = [choice.token_id for choice in sampler.choose(logits, rows)]
    for row, token in zip(rows, tokens, strict=True):
        row.append(token)
    return tokens


def chi_square(counts: Counter[int], probs: torch.Tensor) -> float:
    expected = probs * DRAWS
    return sum((counts[token] - float(mean)) ** 2 / float(mean) for token, mean in enumerate(expected) if mean > 0)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"temperature": 1.0}, 8),
        ({"temperature": 0.5}, 8),
        ({"temperature": 2.0}, 8),
        ({"temperature": 1.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_p": 0.5}, 1),
        ({"temperature": 1.0, "top_p": 0.8}, 3),
        # top_k first: of the two that stay, the likelier one alone has 73 %.
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.7}, 1),
    ],
)
def test_draws_follow_the_distribution(rules: dict[str, float], kept: int) -> None:
    probs = torch.softmax(LOGITS / rules["temperature"], dim=-1)
    order = probs.argsort(descending=True)
    probs[order[kept:]] = 0
    probs /= probs.sum()
    probs[7] = 0 if kept < 8 else probs[7]
    counts = draw_many(Sampler(8, frozenset(), 8, torch.device("cpu")), LOGITS, **rules)
    assert set(counts) <= {token for token, prob in enumerate(probs.tolist()) if prob > 0}
    likely = torch.where(probs * DRAWS >= 5, probs, 0)
    # 99.9 % of fair draws with up to 7 degrees of freedom stay below 24.3.
    assert chi_square(counts, likely) < 24.3


def test_rows_of_one_batch_keep_to_their_own_rules() -> None:
    sampler = Sampler(8, frozenset(), 8, torch.device("cpu"))
    rules = [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0}, {"temperature": 0.0}]
    rows = [sequence(seed=1, **one) for one in rules]
    seen = [Counter[int]() for _ in rows]
    for _ in range(200):
        for counter, token in zip(seen, take(sampler, LOGITS.repeat(4, 1), rows), strict=True):
            counter[token] += 1
    assert [len(counter) for counter in seen[:2]] == [1, 1]
    assert len(seen[2]) > 3
    assert len(seen[3]) == 1


def test_forbidden_tokens_and_those_without_text_are_never_drawn() -> None:
    sampler = Sampler(8, frozenset({6, 99}), 5, torch.device("cpu"))
    counts = draw_many(sampler, LOGITS, temperature=5.0)
    assert set(counts) == {0, 1, 2, 3, 4}
    assert sampler.choose(LOGITS[None], [sequence(temperature=0.0)])[0].token_id == 0


EXTREMES: dict[str, list[object]] = {
    "temperature": [0.0, 1e-310, 9.9e-6, 1e-5, 0.3, 1.0, 2.0, 1e30],
    "top_p": [1.0, 0.999999999, 0.9, 0.5, 1e-7, 1e-46, 1e-50, 5e-324],
    "top_k": [0, 1, 2, 299, 300, 301, 2**31, 2**63, 10**30],
    "presence_penalty": [0.0, -2.0, 2.0],
    "frequency_penalty": [0.0, -2.0, 2.0],
    "seed": [None, 0, 2**63 - 1, 2**63, -(2**63), 10**30],
}


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_under_any_rules_a_drawn_token_is_in_range_and_allowed(scale: float) -> None:
    wide, known, dice = 300, 290, random.Random(5)
    forbidden = frozenset({0, 7, 299})
    sampler = Sampler(wide, forbidden, known, torch.device("cpu"))
    logits = torch.randn(40, wide, generator=torch.Generator().manual_seed(3)) * scale
    for _ in range(10):
        rules = [{name: dice.choice(values) for name, values in EXTREMES.items()} for _ in logits]
        rows = [sequence(**rule) for rule in rules]
        for row in rows:
            row.counts.update({5: 4000, 6: 1, 299: 2})
        for _ in range(3):
            for rule, token, own in zip(rules, take(sampler, logits, rows), logits, strict=True):
                assert 0 < token < known, rule
                assert token not in forbidden, rule
                free = not (rule["presence_penalty"] or rule["frequency_penalty"])
                # Past 2 all probabilities are one.
                one = rule["top_k"] == 1 or rule["top_p"] < 1e-6  # type: ignore[operator]
                if free and one and rule["temperature"] <= 2:  # type: ignore[operator]
                    best = (own + sampler._bias).max()
                    assert own[token] >= best - 1e-5 * max(1, abs(best)), rule


def test_logits_that_are_no_numbers_still_give_a_token() -> None:
    sampler = Sampler(8, frozenset(), 8, torch.device("cpu"))
    for rule in ({}, {"top_k": 3}):
        one = sequence(temperature=1.0, seed=1, **rule)
        assert take(sampler, torch.full((1, 8), torch.nan), [one])[0] in range(8)


@pytest.mark.parametrize("place", [5, 8])
def test_a_sum_that_is_rounded_ill_draws_nothing_that_was_cut_off(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    sampler = Sampler(8, frozenset(), 8, torch.device("cpu"))
    monkeypatch.setattr(torch, "searchsorted", lambda _, aim, **__: torch.full(aim.shape, place))
    assert take(sampler, LOGITS[None], [sequence(temperature=1.0, top_k=3)]) == [6]


def test_a_step_that_is_made_again_draws_what_it_would_have_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(8, frozenset(), 8, torch.device("cpu"))
    broken, whole = (sequence(temperature=2.0, seed=4) for _ in range(2))
    drawn = []
    for place in range(20):
        with monkeypatch.context() as patch:
            if place % 3 == 0:
                patch.setattr(sampling, "_report", None)  # breaks once everything is drawn
                with pytest.raises(TypeError):
                    sampler.choose(LOGITS[None], [broken])
        drawn += [(take(sampler, LOGITS[None], [broken]), take(sampler, LOGITS[None], [whole]))]
    assert all(one == other for one, other in drawn)
    assert len({tokens[0] for tokens, _ in drawn}) > 3


def test_penalties_are_openais() -> None:
    sampler = Sampler(8, frozenset(), 8, torch.device("cpu"))
    one = sequence(temperature=0.0, presence_penalty=0.6, frequency_penalty=0.5)
    # 3.0 falls to 1.9, below 2.0; that falls to 0.9, so 1.9 is next; it falls to 1.4, below 1.5.
    chosen = []
    for _ in range(4):
        token = sampler.choose(LOGITS[None], [one])[0].token_id
        one.append(token)
        chosen.append(token)
    assert chosen == [6, 0, 6, 5]
    assert torch.equal(LOGITS, torch.tensor([2.0, 1.0, 0.0, 0.5, -1.0, 1.5, 3.0, -30.0]))


def test_logprobs_are_of_the_models_own_distribution() -> None:
    sampler = Sampler(8, frozenset({6}), 8, torch.device("cpu"))
    one = sequence(temperature=0.3, top_k=1, logprobs=True, top_logprobs=2, presence_penalty=2.0)
    one.append(0)
    choice = sampler.choose(LOGITS[None], [one])[0]
    theirs = torch.log_softmax(LOGITS, dim=-1)
    assert choice.token_id == 5
    assert choice.logprob == pytest.approx(float(theirs[5]))
    assert [token for token, _ in choice.top] == [6, 0]
    assert choice.top[0][1] == pytest.approx(float(theirs[6]))


async def test_a_seed_repeats_whoever_else_is_running(smolvlm: Path, start: StartEngine) -> None:
    import asyncio

    engine = await start(smolvlm)
    request = asking(turn(draw((200, 0, 0)), "Draw lots"), temperature=1.2, seed=11, max_tokens=20)
    others = [asking(turn(f"other {n}"), temperature=1.0, max_tokens=20) for n in range(2)]
    alone = await answer(engine, request)
    beside, *_ = await asyncio.gather(*(answer(engine, one) for one in (request, *others)))
    assert alone.text == beside.text
    other_seed = asking(turn(draw((200, 0, 0)), "Draw lots"), temperature=1.2, seed=12, max_tokens=20)
    assert (await answer(engine, other_seed)).text != alone.text
    free = {(await answer(engine, asking(turn("x"), temperature=1.5, max_tokens=20))).text for _ in range(3)}
    assert len(free) == 3


async def test_media_tokens_are_never_said(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    request = asking(turn("x"), temperature=50.0, seed=1, max_tokens=400)
    made = await answer(engine, request)
    named = {token.chosen.text for token in made.logprobs}
    assert len(named) > 100
    assert not named & {"<image>", "<fake_token_around_image>", "<global-img>"}
    assert not any(special in made.text for special in SMOLVLM_SPECIALS)


async def test_penalties_change_greedy_answers_as_generates_scores_say(
    smolvlm: Path, smolvlm_reference: SmolVLMReference, start: StartEngine
) -> None:
    engine = await start(smolvlm)
    request = asking(turn("Say it again"), frequency_penalty=2.0, presence_penalty=1.0, max_tokens=30)
    made = await answer(engine, request)
    texts = [token.chosen.data for token in made.logprobs]
    plain = [
        token.chosen.data for token in (await answer(engine, asking(turn("Say it again"), max_tokens=30))).logprobs
    ]
    assert max(Counter(texts).values()) <= max(Counter(plain).values())
    assert texts != plain or max(Counter(plain).values()) == 1
    assert all(math.isfinite(token.chosen.logprob) for token in made.logprobs)
