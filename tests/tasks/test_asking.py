"""What a client looks for reaches the prompt as it is, and a task that a card lacks is refused by name."""

from __future__ import annotations

import pytest

from onsight.core.errors import Unsupported
from onsight.core.geometry import Box
from onsight.core.messages import ImageOptions, ImageRef, Text
from onsight.engines.fake_engine import FakeEngine
from onsight.models.card import ModelCard, cards
from onsight.tasks import caption, describe, locate, ocr
from onsight.tasks.asking import PictureCall
from onsight.tasks.chat import ChatCall
from onsight.tasks.locate import Wanted
from onsight.tasks.roster import Loaded
from tests.tasks.targets import TARGETS

CARDS = {card.name: card for card in cards()}


def calling(card: ModelCard, options: ImageOptions = ImageOptions()) -> PictureCall:  # noqa: B008 (frozen)
    return PictureCall(ImageRef("https://x/y.png", options, "image"), Loaded(("m",), card, FakeEngine(), 0))


def said(call: ChatCall) -> str:
    (draft,) = call.drafts
    return "".join(part.text for part in draft.parts if isinstance(part, Text))


def test_there_are_forty_scripts() -> None:
    assert len({script for script, _ in TARGETS}) == 40


@pytest.mark.parametrize("name", ["peek", "holo1_5", "qwen2_5_vl"])
def test_targets_of_every_script_reach_the_prompt_unchanged(name: str) -> None:
    card = CARDS[name]
    prompt = card.prompt("locate")
    assert prompt is not None
    before, after = prompt.text.split("{target}")
    for _, target in TARGETS:
        assert said(locate.prompt(calling(card), Wanted(target))) == before + target + after


def test_holo_is_asked_as_its_makers_ask_it() -> None:
    text = said(locate.prompt(calling(CARDS["holo1_5"]), Wanted("the red button")))
    lines = text.split("\n")
    assert lines[0] == (
        "Localize an element on the GUI image according to the provided target and output a click position."
    )
    assert lines[1].startswith(" * You must output a valid JSON following the format: {'description': 'Click at")
    assert lines[2:] == [" Your target is:", "the red button"]


def test_a_missing_task_is_refused_by_name() -> None:
    smol, peek, holo = (calling(CARDS[name]) for name in ("smolvlm2", "peek", "holo1_5"))
    with pytest.raises(
        Unsupported, match="was not made to locate; it can chat, tools, caption, ocr, describe"
    ) as caught:
        locate.prompt(smol, Wanted("x"))
    assert caught.value.param == "model"
    for call, wanted, param in (
        (peek, Wanted("x", shape="box"), "shape"),
        (peek, Wanted("x", every=True), "all"),
        (holo, Wanted("x", True, "box"), "shape"),
    ):
        with pytest.raises(Unsupported) as caught:
            locate.prompt(call, wanted)
        assert caught.value.param == param
    with pytest.raises(Unsupported, match="caption_short; for this task it knows caption") as caught:
        caption.prompt(peek, "short")
    assert caught.value.param == "length"
    for ask in (caption.prompt, ocr.prompt, lambda call: describe.prompt(call, Box(1, 2, 3, 4))):
        with pytest.raises(Unsupported):
            ask(calling(CARDS["colqwen2_5"]))
