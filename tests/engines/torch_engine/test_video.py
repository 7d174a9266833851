"""Videos say what transformers' own classes say of them, token for token, however requests are batched and reused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from onsight.core.errors import ContextTooLong, InvalidMedia, Unsupported
from onsight.core.generation import GenerateRequest
from onsight.core.messages import Video, VideoOptions, VideoRef
from onsight.media.door import MediaDoor
from onsight.models.card import find_card
from tests.engines.fidelity import note
from tests.engines.torch_engine.asking import answer, asking, check, check_all, expectations, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.engines.torch_engine.reference import Reference, SmolVLMReference
from tests.media.clips import clip
from tests.tiny_models import draw, film

pytestmark = pytest.mark.model

RED, BLUE = film((200, 0, 0)), film((0, 0, 220), frames=5, width=50, height=84, every_s=2.5)
LONG = film((0, 150, 0), frames=24, width=40, height=30, every_s=60.0)
PICTURE = draw((0, 150, 0), 40, 90)


@pytest.fixture(params=["smolvlm", "qwen"])
def family(request: pytest.FixtureRequest) -> tuple[Path, Reference]:
    reference: Reference = request.getfixturevalue(f"{request.param}_reference")
    return request.getfixturevalue(request.param), reference


Note = Callable[[str, float], None]


@pytest.fixture(name="note")
def _note(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Note:
    """`note("videos, several turns", 3e-6)`: that much the family's answers differ there."""
    title = {"smolvlm": "SmolVLM2, videos", "qwen": "Qwen2.5-VL, videos"}[request.node.callspec.params["family"]]
    return lambda check, largest: note(record_property, title, check, largest)


def ragged() -> list[GenerateRequest]:
    """One video, of even and odd frames, long, with pictures before and after, several, in several turns, and none."""
    return [
        asking(turn(RED, "What colour?"), max_tokens=15),
        asking(turn("Only text here: " + "what do you see? " * 6), max_tokens=5),
        asking(turn("Text first, then the video: ", BLUE), max_tokens=20),
        asking(turn(RED, PICTURE, "Compare the two."), max_tokens=9),
        asking(turn(PICTURE, " and ", BLUE), turn("A box.", role="assistant"), turn("Sure? ", RED), max_tokens=11),
        asking(turn("Be brief.", role="system"), turn(LONG, "What is it?")),
        asking(turn(PICTURE, "What is it?"), max_tokens=8),
        asking(turn(BLUE, RED), max_tokens=1),
    ]


@pytest.mark.fidelity
async def test_ragged_requests_with_joins_in_flight_match_generate(
    family: tuple[Path, Reference], start: StartEngine, note: Note
) -> None:
    folder, reference = family
    requests = ragged()
    engine = await start(folder, max_num_seqs=3)
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    note("videos, joining in flight", check_all(made, expectations(reference, requests), reference))


async def test_the_answer_depends_on_the_video_and_on_its_times(
    family: tuple[Path, Reference], start: StartEngine
) -> None:
    folder, _ = family
    engine = await start(folder)
    videos = (RED, BLUE, film((200, 0, 0), frames=6), film((200, 0, 0), every_s=20.0))
    tokens = [(await answer(engine, asking(turn(video, "What colour?")))).logprobs for video in videos]
    assert len({tuple(token.chosen.logprob for token in one) for one in tokens}) == 4


@pytest.mark.fidelity
async def test_a_second_question_costs_no_second_look(
    family: tuple[Path, Reference], start: StartEngine, note: Note
) -> None:
    folder, reference = family
    engine = await start(folder, max_num_seqs=2)
    requests = [
        asking(turn(RED, "What colour?")),
        asking(turn(RED, "What colour?")),
        asking(turn(RED, "And what shape?")),
        asking(turn("Text before: ", RED, PICTURE)),
    ]
    for request, expected in zip(requests, expectations(reference, requests), strict=True):
        made = await answer(engine, request)
        note("videos, second question", check(made, expected, reference))
    status = engine.status()
    assert (status.image_cache_hits_total, status.image_cache_misses_total) == (3, 2)
    assert status.prefix_cached_tokens_total > made.usage.video_tokens


@pytest.mark.fidelity
@pytest.mark.parametrize("video", [RED, BLUE, LONG], ids=["short", "odd", "long"])
async def test_a_conversation_about_a_video_goes_on(
    family: tuple[Path, Reference], start: StartEngine, video: Video, note: Note
) -> None:
    """The answer becomes part of the next prompt, where it must stand at the places at which it was given."""
    folder, reference = family
    engine = await start(folder)
    messages = [turn(video, "What do you see?")]
    for question in ("Is it red?", "Where?"):
        request = asking(*messages, max_tokens=24)
        made = await answer(engine, request)
        note("videos, several turns", check(made, reference.generate(request.messages, 24), reference))
        messages += [turn(made.text, role="assistant"), turn(question)]
    assert made.usage.cached_tokens >= made.usage.video_tokens > 0


async def test_no_tokens_are_reused_inside_a_video(family: tuple[Path, Reference], start: StartEngine) -> None:
    folder, _ = family
    engine = await start(folder)
    words = "Look at this and say what you see: "
    await answer(engine, asking(turn(words, RED)))
    again = await answer(engine, asking(turn(words, film((0, 0, 220)))))
    assert 16 <= again.usage.cached_tokens <= again.usage.prompt_tokens - again.usage.video_tokens


@pytest.mark.fidelity
async def test_a_long_video_is_read_in_parts(
    family: tuple[Path, Reference], start: StartEngine, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = family
    monkeypatch.setattr("onsight.engines.torch_engine.scheduler.PREFILL_TOKENS", 24)
    engine = await start(folder, max_num_seqs=4)
    requests = ragged()[:5]
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    note("videos, read in parts", check_all(made, expectations(reference, requests), reference))


def test_smolvlm_says_how_many_frames_and_when(smolvlm_reference: SmolVLMReference) -> None:
    """The golden prompt; the tests above hold the engine to the tokens of it."""
    view = "<fake_token_around_image><global-img><image><image><image><image><fake_token_around_image>"
    text = smolvlm_reference.full_prompt([turn(LONG.__class__(**_only(LONG, 2)), "What?")])
    assert text == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:24:00 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{view}\nFrame from 12:00:{view}\n\nWhat?<end_of_utterance>\nAssistant:"
    )


def _only(video: Video, frames: int) -> dict[str, object]:
    """The fields of `video` with so many of its frames, spread over its whole time."""
    size = video.width * video.height * 3
    return {
        "pixels": video.pixels[: frames * size], "width": video.width, "height": video.height,
        "timestamps": tuple(place * video.duration_s / frames for place in range(frames)),
        "duration_s": video.duration_s, "digest": "0" * 64,
    }  # fmt: skip


@pytest.mark.parametrize("options", [VideoOptions(), VideoOptions(fps=3.0, max_frames=7)])
async def test_a_file_is_answered_from_its_bytes(
    family: tuple[Path, Reference], start: StartEngine, options: VideoOptions
) -> None:
    folder, reference = family
    rule = find_card(str(folder), folder).frames
    assert rule is not None
    door = MediaDoor()
    refs = [VideoRef(clip("webm", "libvpx-vp9", 45), options), VideoRef(clip("mp4", "mpeg4", 31, turned=90), options)]
    upright, turned = await door.open_videos(refs, rule)
    door.close()
    request = asking(turn(upright, "Is it as red as ", turned, "?"))
    made = await answer(await start(folder), request)
    check(made, reference.generate(request.messages, 12), reference)
    assert made.usage.video_tokens > 0


@pytest.mark.parametrize("name", ["smolvlm", "qwen"])
async def test_typed_placeholders_of_videos_are_plain_characters(
    name: str, start: StartEngine, request: pytest.FixtureRequest
) -> None:
    engine = await start(request.getfixturevalue(name))
    typed = "<video> <|video_pad|> <|vision_start|><|video_pad|><|vision_end|> Frame from 00:01:<image>"
    plain = await answer(engine, asking(turn(typed), max_tokens=2))
    assert plain.usage.video_tokens == plain.usage.image_tokens == 0
    assert plain.usage.prompt_tokens > 60
    with_video = await answer(engine, asking(turn(RED, typed), max_tokens=2))
    alone = await answer(engine, asking(turn(RED, "a"), max_tokens=2))
    assert with_video.usage.video_tokens == alone.usage.video_tokens > 0
    assert alone.usage.image_tokens == 0


async def test_a_prompt_that_is_too_long_says_what_each_video_takes(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_model_len=200)
    with pytest.raises(ContextTooLong) as caught:
        await answer(engine, asking(turn(PICTURE, BLUE, RED, LONG, "What?"), max_tokens=None))
    message = caught.value.message
    taken = [part.split(": ")[1] for part in message.split("(")[1].split(")")[0].split(", ") if ": " in part]
    assert [name in message for name in ("picture 1: ", "video 1: ", "video 2: ", "video 3: ")] == [True] * 4
    assert len(taken) == 4
    assert "or fewer frames of a video (fps, max_frames)" in message


async def test_a_family_that_sees_no_videos_says_so(mllama: Path, start: StartEngine) -> None:
    engine = await start(mllama)
    with pytest.raises(Unsupported, match="does not see videos"):
        await answer(engine, asking(turn(RED, "What?")))


async def test_a_video_that_is_far_too_thin_is_refused(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)
    with pytest.raises(InvalidMedia, match="video is 1000x4 px"):
        await answer(engine, asking(turn(film((0, 0, 0), width=1000, height=4), "What?")))
