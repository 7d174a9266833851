"""The engine says what transformers' own `generate` says, token for token, however requests are batched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onsight.core.generation import GenerateRequest
from tests.engines.torch_engine.asking import answer, asking, check, expectations, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.reference import Reference
from tests.tiny_models import draw

pytestmark = pytest.mark.model

RED, BLUE, GREEN = draw((200, 0, 0)), draw((0, 0, 220), 96, 40), draw((0, 150, 0), 40, 90)


def ragged() -> list[GenerateRequest]:
    """Seven requests of many lengths: no picture, one, several, before and after the text, several turns."""
    return [
        asking(turn(RED, "What colour?"), max_tokens=15),
        asking(turn("Only text here, and a good deal of it: " + "what do you see? " * 6), max_tokens=5),
        asking(turn("Text first, then the picture: ", BLUE), max_tokens=20),
        asking(turn(RED, GREEN, "Compare the two."), max_tokens=9),
        asking(
            turn("Be brief.", role="system"),
            turn(GREEN, "What is it?"),
            turn("A box.", role="assistant"),
            turn("Sure?"),
        ),
        asking(turn("one ", BLUE, " two ", RED, " three"), max_tokens=11),
        asking(turn(GREEN, "?"), max_tokens=1),
    ]


@pytest.fixture(params=["smolvlm", "qwen", "phi3"])
def family(request: pytest.FixtureRequest) -> tuple[Path, Reference]:
    reference: Reference = request.getfixturevalue(f"{request.param}_reference")
    return request.getfixturevalue(request.param), reference


async def test_ragged_requests_with_joins_in_flight_match_generate(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, reference = family
    requests = ragged()
    expected = expectations(reference, requests)
    engine = await start(folder, max_num_seqs=3)
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    for ours, theirs in zip(made, expected, strict=True):
        check(ours, theirs, reference)


async def test_the_answer_depends_on_the_picture(family: tuple[Path, Reference], start: StartEngine) -> None:
    folder, _ = family
    engine = await start(folder)
    texts = {(await answer(engine, asking(turn(picture, "What colour?")))).text for picture in (RED, BLUE, GREEN)}
    assert len(texts) == 3


async def test_cached_features_and_prefixes_change_nothing(family: tuple[Path, Reference], start: StartEngine) -> None:
    folder, reference = family
    engine = await start(folder, max_num_seqs=2)
    requests = [
        asking(turn(RED, "What colour?")),
        asking(turn(RED, "What colour?")),
        asking(turn(RED, "And what shape?")),
        asking(turn("Text before: ", RED)),
        asking(turn(RED, "What colour?"), turn("White.", role="assistant"), turn("And ", BLUE, "?")),
    ]
    for request, expected in zip(requests, expectations(reference, requests), strict=True):
        check(await answer(engine, request), expected, reference)
    status = engine.status()
    looks = 3 if reference.coarser_among_several else 2
    assert (status.image_cache_hits_total, status.image_cache_misses_total) == (6 - looks, looks)
    assert status.prefix_cached_tokens_total > 60


async def test_a_prefix_is_reused_from_a_slot_that_is_still_running(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, reference = family
    engine = await start(folder, max_num_seqs=3)
    long, short = asking(turn(RED, "What colour?"), max_tokens=60), asking(turn(RED, "What else?"))
    first = asyncio.ensure_future(answer(engine, long))
    while engine.status().kv_used_tokens == 0:
        await asyncio.sleep(0.001)
    second = await answer(engine, short)
    assert not first.done()
    assert second.usage.cached_tokens >= second.usage.image_tokens > 0
    check(second, reference.generate(short.messages, 12), reference)
    check(await first, reference.generate(long.messages, 60), reference)


async def test_a_conversation_reuses_its_own_prompt_and_answer(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, reference = family
    engine = await start(folder)
    messages = [turn(BLUE, "What do you see?")]
    for question in ("Is it red?", "Where?", "Read the screen."):
        request = asking(*messages)
        made = await answer(engine, request)
        check(made, reference.generate(request.messages, 12), reference)
        messages += [turn("A blue square.", role="assistant"), turn(question)]
    assert made.usage.cached_tokens > made.usage.image_tokens


async def test_no_tokens_are_reused_inside_a_picture(family: tuple[Path, Reference], start: StartEngine) -> None:
    folder, _ = family
    engine = await start(folder)
    words = "Look at this picture and say what you see: "
    await answer(engine, asking(turn(words, RED)))
    again = await answer(engine, asking(turn(words, BLUE)))
    assert 16 <= again.usage.cached_tokens <= again.usage.prompt_tokens - again.usage.image_tokens


async def test_a_prompt_longer_than_one_step_is_read_in_parts(
    family: tuple[Path, Reference], start: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = family
    monkeypatch.setattr("onsight.engines.torch_engine.scheduler.PREFILL_TOKENS", 40)
    engine = await start(folder, max_num_seqs=4)
    requests = ragged()
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    for ours, theirs in zip(made, expectations(reference, requests), strict=True):
        check(ours, theirs, reference)


async def test_a_small_feature_cache_forgets_and_still_answers(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, reference = family
    engine = await start(folder, image_cache_bytes=0, max_num_seqs=1)
    for request in (asking(turn("a", RED)), asking(turn("b", RED))):
        check(await answer(engine, request), reference.generate(request.messages, 12), reference)
    assert engine.status().image_cache_hits_total == 0


async def test_a_picture_is_encoded_once_for_all_who_wait_with_it(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, reference = family
    engine = await start(folder, max_num_seqs=1)
    requests = [asking(turn(f"{word} ", RED), max_tokens=6) for word in ("One", "Two", "Three")]
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    for ours, theirs in zip(made, expectations(reference, requests), strict=True):
        check(ours, theirs, reference)
    assert engine.status().image_cache_misses_total == 1
