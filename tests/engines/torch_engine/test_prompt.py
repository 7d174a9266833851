"""A prompt is what transformers makes of it, and nobody's text becomes a token of the template or a picture."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest

from onsight.core.errors import ContextTooLong, InvalidMedia, InvalidRequest, Unsupported
from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine import prompt
from onsight.engines.torch_engine.families.qwen_sizes import resized
from tests.engines.torch_engine.asking import answer, asking, check, turn
from tests.engines.torch_engine.conftest import GetTiny, StartEngine
from tests.engines.torch_engine.reference import QwenReference, SmolVLMReference
from tests.tiny_models import draw

pytestmark = pytest.mark.model

RED = (200, 0, 0)


@pytest.mark.parametrize("text", ["", " ", "\n\n", " a  b ", "ends with blank ", "\ttabs", "Größe 中文 🙂", "1234 5,6"])
async def test_text_is_tokenised_as_in_one_string(
    text: str, smolvlm: Path, smolvlm_reference: SmolVLMReference, start: StartEngine
) -> None:
    request = asking(turn(text), turn("x", text, draw(RED), text, role="assistant"), turn(text, "y"), max_tokens=2)
    made = await answer(await start(smolvlm), request)
    check(made, smolvlm_reference.generate(request.messages, 2), smolvlm_reference)


@pytest.mark.parametrize(
    "size", [(64, 48), (48, 64), (1, 1), (500, 20), (20, 500), (96, 96), (97, 31), (33, 32), (200, 199)]
)
async def test_tiles_follow_the_image_processor(
    size: tuple[int, int], smolvlm: Path, smolvlm_reference: SmolVLMReference, start: StartEngine
) -> None:
    request = asking(turn(draw(RED, *size), "?"), max_tokens=2)
    made = await answer(await start(smolvlm), request)
    check(made, smolvlm_reference.generate(request.messages, 2), smolvlm_reference)


async def test_low_detail_never_splits(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    reference = SmolVLMReference(smolvlm, split=False)
    request = asking(turn(draw(RED, options=ImageOptions(detail="low")), "What colour?"))
    made = await answer(engine, request)
    assert made.usage.image_tokens == 4 + 3
    check(made, reference.generate(request.messages, 12), reference)
    # The same picture in full detail is another entry of the cache, and another prefix.
    fine = await answer(engine, asking(turn(draw(RED), "What colour?")))
    assert fine.usage.image_tokens > made.usage.image_tokens
    assert engine.status().image_cache_hits_total == 0


@pytest.mark.parametrize("size", [(64, 48), (30, 400), (224, 224), (1, 1), (300, 41)])
async def test_patches_follow_the_image_processor(
    size: tuple[int, int], qwen: Path, qwen_reference: QwenReference, start: StartEngine
) -> None:
    request = asking(turn(draw(RED, *size), "?"), max_tokens=2)
    check(await answer(await start(qwen), request), qwen_reference.generate(request.messages, 2), qwen_reference)


async def test_pixel_bounds_are_honoured_or_refused(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)

    async def tokens(**options: object) -> int:
        picture = draw(RED, 224, 168, ImageOptions(**options))  # type: ignore[arg-type]
        return (await answer(engine, asking(turn(picture), max_tokens=1))).usage.image_tokens

    assert await tokens() == 48
    assert await tokens(max_pixels=28 * 28 * 12) == 12
    assert await tokens(min_pixels=28 * 28 * 60, max_pixels=28 * 28 * 80) > 60
    for options, name in (
        ({"max_pixels": 5}, "max_pixels"),
        ({"min_pixels": 9000, "max_pixels": 5000}, "min_pixels"),
        ({"min_pixels": 10**400, "max_pixels": 10**400}, "min_pixels"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await tokens(**options)
        assert caught.value.param == f"messages.image_url.{name}"
    with pytest.raises(InvalidMedia, match="1000x4"):
        await answer(engine, asking(turn(draw(RED, 1000, 4)), max_tokens=1))


async def test_no_picture_is_made_larger_than_the_context_holds(qwen: Path, start: StartEngine) -> None:
    engine, most = await start(qwen), 1024 * 28 * 28
    for asked in (most + 1, 200_000_000_000):
        picture = draw(RED, 4, 4, ImageOptions(min_pixels=asked, max_pixels=asked))
        with pytest.raises(InvalidRequest, match=f"min_pixels is {asked}.* {most} px") as caught:
            await answer(engine, asking(turn(picture), max_tokens=1))
        assert caught.value.param == "messages.image_url.min_pixels"


@pytest.mark.parametrize("name", ["smolvlm", "qwen", "phi3"])
async def test_pictures_that_do_not_fit_are_counted_and_not_written(
    name: str, tiny: GetTiny, start: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [draw(RED, 300, 200), draw((0, 0, 200), 300, 200)]
    each = [len(tiny(name).family.plan(picture, 2).token_ids) for picture in pictures]
    engine = await start(tiny(name).folder, max_model_len=sum(each))
    written: list[int] = []
    write = prompt._write_media

    def noted(made: prompt.Prompt, plan: prompt.Plan, feature_token_ids: Set[int | None]) -> None:
        written.append(len(plan.token_ids))
        write(made, plan, feature_token_ids)

    monkeypatch.setattr(prompt, "_write_media", noted)
    with pytest.raises(ContextTooLong, match=rf"text \d+, picture 1: {each[0]}, picture 2: {each[1]}\)"):
        await answer(engine, asking(turn(*pictures, "?"), max_tokens=1))
    assert written == [0, 0]


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
async def test_tiles_have_no_pixel_bounds(name: str, smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    with pytest.raises(Unsupported) as caught:
        await answer(engine, asking(turn(draw(RED, options=ImageOptions(**{name: 5000})), "?")))  # type: ignore[arg-type]
    assert caught.value.param == f"messages.image_url.{name}"


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((512, 512), 602_112, (504, 504)),
        ((1024, 768), 602_112, (896, 672)),
        ((1024, 768), 1_003_520, (1036, 756)),
        ((1920, 1080), 602_112, (1008, 560)),
        ((1920, 1080), 1_003_520, (1316, 728)),
        ((1920, 1080), 12_845_056, (1932, 1092)),
        ((3840, 2160), 12_845_056, (3836, 2156)),
    ],
)
def test_sizes_of_known_screens(size: tuple[int, int], most: int, expected: tuple[int, int]) -> None:
    assert resized(*size, 28, 3136, most) == expected


async def test_a_long_prompt_is_refused_with_what_text_and_each_picture_take(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm, max_model_len=200)
    pictures: list[Image] = [draw(RED), draw((0, 0, 200)), draw((0, 200, 0)), draw((1, 1, 1))]
    with pytest.raises(ContextTooLong) as caught:
        await answer(engine, asking(turn(*pictures, "What?"), max_tokens=None))
    text = caught.value.message
    assert "picture 1: 64, picture 2: 64, picture 3: 64, picture 4: 64" in text
    assert "text 9" in text
    assert "200" in text


@pytest.mark.parametrize("max_tokens", [None, 512])
async def test_an_answer_ends_with_the_context_at_the_latest(
    smolvlm: Path, start: StartEngine, max_tokens: int | None
) -> None:
    engine = await start(smolvlm, max_model_len=64)
    made = await answer(engine, asking(turn("go on"), max_tokens=max_tokens, temperature=1.0, seed=3))
    assert made.reason == "stop" or made.usage.prompt_tokens + made.usage.completion_tokens == 64
