"""Every engine says, with its last event, how large it saw each picture."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from onsight.core.generation import Finished, GenerateRequest, Sampling
from onsight.core.geometry import Size, View
from onsight.core.messages import ImageOptions
from tests.engines.torch_engine.asking import turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import draw

pytestmark = pytest.mark.model

QWEN_HEIGHT, QWEN_WIDTH = smart_resize(48, 64, 28, 56 * 56, 28 * 28 * 64)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        # The longest edge becomes 96 px, and 96x72 px are stretched to whole tiles of 32 px.
        ("smolvlm", Size(96, 96)),
        ("qwen", Size(QWEN_WIDTH, QWEN_HEIGHT)),
        # A canvas of 64x64 px, in which the picture keeps its own shape.
        ("mllama", Size(64, 48)),
        # Four crops of 28 px across, three down.
        ("phi3", Size(112, 84)),
    ],
)
async def test_a_picture_is_seen_as_its_image_processor_makes_it(
    start: StartEngine, model: str, seen: Size, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    engine = await start(folder)
    asked = GenerateRequest((turn(draw((200, 0, 0)), "What is it?"),), Sampling(max_tokens=2, temperature=0))
    async with aclosing(engine.generate(asked)) as events:
        ends = [event async for event in events if isinstance(event, Finished)]
    assert [end.views for end in ends] == [(View(Size(64, 48), seen),)]


async def test_several_pictures_are_told_in_their_order_each_under_its_own_options(
    start: StartEngine, qwen: Path
) -> None:
    engine = await start(qwen)
    small = ImageOptions(max_pixels=28 * 28 * 4)
    parts = (draw((200, 0, 0), 112, 56), draw((0, 200, 0), 112, 112, small), draw((0, 0, 200), 112, 112))
    asked = GenerateRequest((turn(*parts, "Which?"),), Sampling(max_tokens=2, temperature=0))
    async with aclosing(engine.generate(asked)) as events:
        (views,) = [event.views async for event in events if isinstance(event, Finished)]
    assert views == (
        View(Size(112, 56), Size(112, 56)),
        View(Size(112, 112), Size(56, 56)),
        View(Size(112, 112), Size(112, 112)),
    )
