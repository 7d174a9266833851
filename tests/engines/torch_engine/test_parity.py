"""Every family says what its reference says, logit for logit at every token, however requests are batched.

The largest differences go into docs/results/fidelity.md (`make fidelity`).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import replace

import PIL.Image
import PIL.ImageOps
import pytest

from onsight.core.generation import GenerateRequest
from onsight.core.messages import Image
from tests.engines.fidelity import Tiny, note
from tests.engines.torch_engine.asking import Answer, answer, asking, check, check_all, difference, expectations, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.media.pictures import encoded, open_one
from tests.tiny_models import draw

pytestmark = [pytest.mark.model, pytest.mark.fidelity]

RED, BLUE, GREEN = draw((200, 0, 0)), draw((0, 0, 220), 96, 40), draw((0, 150, 0), 40, 90)
SMALL = draw((120, 0, 120), 24, 24)
WORDS = "Look at this picture, and say at length what you see in it: "

Note = Callable[[str, float], None]


@pytest.fixture(name="note")
def _note(family: Tiny, record_property: Callable[[str, object], None]) -> Note:
    """`note("one picture", 3e-6)`: that much the family's answers differ there."""
    return lambda check, largest: note(record_property, family.kind.title, check, largest)


def ragged() -> list[GenerateRequest]:
    """Requests of many lengths with no picture to four, before, after and between the text, in one turn or several."""
    return [
        asking(turn(RED, "What colour?"), max_tokens=15),
        asking(turn("Only text here, and a good deal of it: " + "what do you see? " * 6), max_tokens=9),
        asking(turn("Text first, then the picture: ", SMALL), max_tokens=20),
        asking(turn(RED, GREEN, "Compare the two."), max_tokens=9),
        asking(
            turn("Be brief.", role="system"),
            turn(GREEN, "What is it?"),
            turn("A box.", role="assistant"),
            turn("Sure?"),
        ),
        asking(turn("one ", BLUE, " two ", RED, SMALL, " three ", GREEN), max_tokens=11),
        asking(turn("Hello"), max_tokens=6),
        asking(turn(SMALL, "?"), max_tokens=1),
    ]


async def one_by_one(family: Tiny, start: StartEngine, *requests: GenerateRequest) -> tuple[list[Answer], float]:
    """The answers of an engine that gets the requests one after another, and their largest difference."""
    engine = await start(family.folder)
    made = [await answer(engine, request) for request in requests]
    return made, check_all(made, expectations(family.reference, requests), family.reference)


async def together(family: Tiny, start: StartEngine, **settings: object) -> tuple[list[Answer], float]:
    """The answers to all `ragged` requests at once, and their largest difference."""
    requests = ragged()
    engine = await start(family.folder, **settings)
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    return made, check_all(made, expectations(family.reference, requests), family.reference)


async def test_one_picture(family: Tiny, start: StartEngine, note: Note) -> None:
    made, largest = await one_by_one(
        family, start, *(asking(turn(picture, "What colour?"), max_tokens=20) for picture in (RED, BLUE, GREEN, SMALL))
    )
    note("one picture", largest)
    # The weights are such that what is said depends on what is seen: another picture, another path.
    assert len({one.text for one in made}) == 4


async def test_several_pictures(family: Tiny, start: StartEngine, note: Note) -> None:
    made, largest = await one_by_one(
        family,
        start,
        asking(turn(RED, BLUE, "Compare the two.")),
        asking(turn(BLUE, RED, "Compare the two.")),
        asking(turn("one ", BLUE, " two ", RED, SMALL, " three ", GREEN)),
        asking(turn(RED, RED, "Are they the same?")),
        asking(turn(GREEN, BLUE, "Compare the two.")),
    )
    note("several pictures", largest)
    # Not their order: Llama sees pictures that stand side by side at once.
    assert made[0].text != made[4].text


@pytest.mark.parametrize(
    "sizes", [[(64, 48), (48, 64), (96, 96), (97, 31)], [(4, 300), (300, 4), (5, 4), (200, 199), (33, 400)]]
)
async def test_several_sizes(family: Tiny, start: StartEngine, note: Note, sizes: list[tuple[int, int]]) -> None:
    pictures = [draw((200, 90, 0), *size) for size in sizes]
    _, largest = await one_by_one(
        family, start, *(asking(turn(picture, "?"), max_tokens=4) for picture in pictures), asking(turn(*pictures[:4]))
    )
    note("several sizes", largest)


@pytest.mark.parametrize("text", ["Read the screen.", "what do you see? " * 12, "Größe 中文 🙂", " "])
async def test_text_only(family: Tiny, start: StartEngine, note: Note, text: str) -> None:
    _, largest = await one_by_one(family, start, asking(turn(text), max_tokens=20))
    note("text only", largest)


async def test_several_turns(family: Tiny, start: StartEngine, note: Note) -> None:
    """A conversation that goes on in its own slot, its second picture in a later turn."""
    messages = [turn(BLUE, "What do you see?")]
    requests = [asking(*messages)]
    for question in (turn("Is it red?"), turn("And ", RED, "where?"), turn("Read the screen.")):
        messages += [turn("A blue square.", role="assistant"), question]
        requests.append(asking(*messages))
    made, largest = await one_by_one(family, start, *requests)
    note("several turns", largest)
    assert made[-1].usage.cached_tokens >= 16


async def test_a_system_turn(family: Tiny, start: StartEngine, note: Note) -> None:
    system = turn("Answer in one word.", role="system")
    made, largest = await one_by_one(
        family,
        start,
        asking(system, turn(RED, "What colour?")),
        asking(system, turn("Which colour is the sky?")),
        asking(turn("Read every word.", role="system"), turn(RED, "What colour?")),
    )
    note("system turn", largest)
    assert made[0].text != made[2].text


@pytest.mark.parametrize("slots", [3, 8])
async def test_requests_that_join_in_flight(family: Tiny, start: StartEngine, note: Note, slots: int) -> None:
    _, largest = await together(family, start, max_num_seqs=slots)
    note("joining in flight", largest)


@pytest.mark.parametrize("most", [12, 40])
async def test_a_prompt_longer_than_one_step_is_read_in_parts(
    family: Tiny, start: StartEngine, note: Note, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("onsight.engines.torch_engine.scheduler.PREFILL_TOKENS", most)
    _, largest = await together(family, start, max_num_seqs=4)
    note("prompt read in parts", largest)


async def test_a_second_question_after_the_picture(family: Tiny, start: StartEngine, note: Note) -> None:
    made, largest = await one_by_one(
        family,
        start,
        *(asking(turn(picture, WORDS + end)) for picture, end in [(RED, "colour?"), (RED, "shape?"), (BLUE, "shape?")]),
    )
    note("second question, picture first", largest)
    first, second, other = (one.usage for one in made)
    assert first.cached_tokens == 0
    assert second.cached_tokens > 16 + second.image_tokens
    assert other.cached_tokens <= other.prompt_tokens - other.image_tokens


async def test_a_second_question_before_the_picture(family: Tiny, start: StartEngine, note: Note) -> None:
    made, largest = await one_by_one(
        family,
        start,
        *(asking(turn(WORDS + head, picture)) for picture, head in [(RED, "a"), (RED, "a"), (RED, "b"), (BLUE, "b")]),
    )
    note("second question, text first", largest)
    assert min(made[1].usage.cached_tokens, made[2].usage.cached_tokens) >= 16
    # Never inside a picture, nor after another one.
    assert all(one.usage.cached_tokens <= one.usage.prompt_tokens - one.usage.image_tokens for one in made[2:])


async def test_a_picture_that_lies_on_its_side_in_the_file(family: Tiny, start: StartEngine, note: Note) -> None:
    """EXIF's orientation 6 through the media door, against the picture that Pillow turns upright by itself."""
    lying = PIL.Image.new("RGB", (48, 80), "white")
    lying.paste((200, 30, 0), (0, 0, 20, 50))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    file = encoded(lying, "JPEG", exif=turned)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(file))).convert("RGB")
    assert upright.size == (80, 48)
    request = asking(turn(await open_one(file), "What is it?"))
    engine = await start(family.folder)
    made = await answer(engine, request)
    wanted = family.reference.generate((turn(Image.of(upright.tobytes(), 80, 48), "What is it?"),), 12)
    note("picture turned by EXIF", check(made, wanted, family.reference))
    # Had the orientation been passed over, the answer would be another one.
    as_stored = Image.of(PIL.Image.open(io.BytesIO(file)).tobytes(), 48, 80)
    assert made.text != (await answer(engine, asking(turn(as_stored, "What is it?")))).text


async def test_batch_mates_change_nothing(family: Tiny, start: StartEngine, note: Note) -> None:
    """Ours alone, each in a fresh slot, against ours among others: not the reference, but independence itself."""
    made, _ = await together(family, start, max_num_seqs=8)
    engine = await start(family.folder, max_num_seqs=1, image_cache_bytes=0)
    largest = 0.0
    for request, among in zip(ragged(), made, strict=True):
        alone = await answer(engine, replace(request, sampling=replace(request.sampling)))
        assert alone.seen is not None
        assert among.seen is not None
        assert (alone.seen.prompt, alone.seen.tokens) == (among.seen.prompt, among.seen.tokens)
        largest = max(largest, difference(alone.seen.logits, among.seen.logits))
    note("batch mates", largest)


async def test_a_prefix_is_reused_from_a_slot_that_is_still_running(family: Tiny, start: StartEngine) -> None:
    engine = await start(family.folder, max_num_seqs=3)
    long, short = asking(turn(RED, WORDS + "what colour?"), max_tokens=60), asking(turn(RED, WORDS + "what else?"))
    first = asyncio.ensure_future(answer(engine, long))
    while engine.status().kv_used_tokens == 0:
        await asyncio.sleep(0.001)
    second = await answer(engine, short)
    assert not first.done()
    assert second.usage.cached_tokens > 16 + second.usage.image_tokens
    check_all([second, await first], expectations(family.reference, [short, long]), family.reference)


async def test_a_cache_without_room_keeps_nothing_and_still_answers(family: Tiny, start: StartEngine) -> None:
    engine = await start(family.folder, image_cache_bytes=0, max_num_seqs=1)
    requests = [asking(turn("a", RED)), asking(turn("b", RED)), asking(turn("c", RED, GREEN)), asking(turn("d"))]
    made = [await answer(engine, request) for request in requests]
    check_all(made, expectations(family.reference, requests), family.reference)
    assert engine.status().image_cache_hits_total == 0


async def test_a_picture_is_encoded_once_for_all_who_wait_with_it(family: Tiny, start: StartEngine) -> None:
    engine = await start(family.folder, max_num_seqs=1)
    requests = [asking(turn(f"{word} ", RED), max_tokens=6) for word in ("One", "Two", "Three")]
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    check_all(made, expectations(family.reference, requests), family.reference)
    assert engine.status().image_cache_misses_total == 1


async def test_features_are_found_again_wherever_the_picture_stands(family: Tiny, start: StartEngine) -> None:
    requests = [
        asking(turn(RED, "What colour?")),
        asking(turn(RED, "What colour?")),
        asking(turn("Text before: ", RED)),
        asking(turn(RED, "What colour?"), turn("White.", role="assistant"), turn("And ", BLUE, "?")),
    ]
    engine = await start(family.folder, max_num_seqs=2)
    made = [await answer(engine, request) for request in requests]
    check_all(made, expectations(family.reference, requests), family.reference)
    status = engine.status()
    looks = 3 if family.reference.coarser_among_several else 2
    assert (status.image_cache_hits_total, status.image_cache_misses_total) == (5 - looks, looks)
