"""A rule picks the frames that the family's own video processor would."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy
import pytest
import torch

from onsight.core.errors import InvalidRequest
from onsight.core.messages import VideoOptions
from onsight.models.card import cards
from tests.media.clips import EVERY_SECOND, IN_PAIRS

RATES = (10, 24, 24000 / 1001, 25, 30, 30000 / 1001, 60, 15)


def smolvlm(total: int, rate: float, num_frames: int, fps: float) -> list[int]:
    """`SmolVLMVideoProcessor.sample_frames`, which cannot be imported without torchvision, by its description."""
    duration = total / rate
    count = max(1, min(round(fps * duration), num_frames))
    start, end = 0, total - 1
    if duration - 2 > num_frames * fps:
        start, end = int(rate), int(total - rate)
    start, end = max(0, start), min(end, total - 1)
    if start >= end:
        start, end = 0, total - 1
    return numpy.unique(numpy.linspace(start, end, count, dtype=int)).tolist()


def qwen(total: int, rate: float, max_frames: int, fps: float) -> list[int]:
    """`Qwen2VLVideoProcessor.sample_frames`, by its description."""
    most = math.floor(min(max_frames, total) / 2) * 2
    count = math.floor(min(max(total / rate * fps, 4), most, total) / 2) * 2
    # Rounding makes its `arange` one too long now and then; that last index lies past the video's end.
    return torch.arange(0, total, total / count).int().tolist()[:count]


@pytest.mark.parametrize(("rule", "reference"), [(EVERY_SECOND, smolvlm), (IN_PAIRS, qwen)])
def test_frames_are_those_of_the_familys_processor(rule: object, reference: object) -> None:
    dice = random.Random(0)
    for _ in range(3000):
        total = dice.randint(2, dice.choice((10, 100, 5000, 20_000)))
        rate, fps, most = dice.choice(RATES), dice.choice((0.5, 1, 2, 3, 5)), dice.choice((2, 4, 7, 16, 64, 128))
        picked = list(rule.pick(total, rate, VideoOptions(fps, most), 128))
        assert picked == reference(total, rate, most, fps), (total, rate, fps, most)


def test_the_cards_state_these_rules() -> None:
    rules = {card.name: card.frames for card in cards()}
    assert rules["smolvlm2"] == EVERY_SECOND
    assert rules["qwen2_5_vl"] == rules["holo1_5"] == IN_PAIRS
    assert rules["peek"] is None


@pytest.mark.parametrize("rule", [EVERY_SECOND, IN_PAIRS])
def test_a_single_frame_is_looked_at(rule: object) -> None:
    assert rule.pick(1, 25.0, VideoOptions(), 128) == (0,)


def test_a_long_video_is_seen_without_its_first_and_last_second() -> None:
    picks = EVERY_SECOND.pick(3000, 10.0, VideoOptions(), 128)
    assert (picks[0], picks[-1], len(picks)) == (10, 2990, 64)
    picks = EVERY_SECOND.pick(600, 10.0, VideoOptions(), 128)
    assert (picks[0], picks[-1], len(picks)) == (0, 599, 60)


def test_the_servers_limit_holds_for_the_rule_and_refuses_a_request() -> None:
    assert len(IN_PAIRS.pick(9000, 30.0, VideoOptions(), 40)) == 40
    with pytest.raises(InvalidRequest, match="max_frames is 41; this server looks at 40"):
        IN_PAIRS.pick(9000, 30.0, VideoOptions(max_frames=41), 40)
    with pytest.raises(InvalidRequest, match="at least 2"):
        IN_PAIRS.pick(9000, 30.0, VideoOptions(max_frames=1), 40)
    assert len(replace(IN_PAIRS, max_frames=8).pick(9000, 30.0, VideoOptions(max_frames=20), 40)) == 20
