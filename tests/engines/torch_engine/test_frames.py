"""Frames are resized and normalised as transformers' video processors do it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from transformers.video_utils import VideoMetadata

from onsight.core.errors import StartError
from onsight.core.messages import Video
from onsight.engines.torch_engine.families.frames import frame_settings, resize
from onsight.engines.torch_engine.families.qwen_video import QwenVideo
from onsight.engines.torch_engine.families.smolvlm_video import SmolVLMVideo
from onsight.engines.torch_engine.vocabulary import Vocabulary
from tests.tiny_models import film

pytestmark = pytest.mark.model

FILMS = [film((200, 0, 0)), film((0, 0, 220), frames=5, width=50, height=84), film((9, 150, 0), 7, 130, 40)]
CPU = torch.device("cpu")
SIZES = [(96, 72, 32, 32), (64, 48, 96, 72), (50, 84, 20, 33), (33, 47, 47, 33), (640, 480, 512, 512)]


def picture(width: int, height: int) -> numpy.ndarray:
    """A white ground, a red square and a ramp, with hard edges where a filter overshoots."""
    made = numpy.full((height, width, 3), 255, numpy.uint8)
    made[height // 4 : height // 2, width // 4 : width // 2] = (200, 0, 0)
    made[height * 3 // 4 :] = (numpy.arange(width) * 255 // width).astype(numpy.uint8)[None, :, None]
    return made


def weights(size: int, target: int, mode: str) -> numpy.ndarray:
    """[target, size] in double precision: the antialiased filters, by their documented formulas."""
    reach = {"lanczos": 3.0, "bicubic": 2.0, "bilinear": 1.0}[mode]
    scale = size / target
    stretch = max(scale, 1.0)
    made = numpy.zeros((target, size))
    for place in range(target):
        centre = (place + 0.5) * scale
        first, last = int(centre - reach * stretch + 0.5), int(centre + reach * stretch + 0.5)
        places = numpy.arange(max(first, 0), min(last, size))
        away = numpy.abs((places - centre + 0.5) / stretch)
        if mode == "lanczos":
            made[place, places] = numpy.where(away < 3, numpy.sinc(away) * numpy.sinc(away / 3), 0)
        elif mode == "bicubic":
            near, far = (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
            made[place, places] = numpy.where(away < 1, near, numpy.where(away < 2, far, 0))
        else:
            made[place, places] = numpy.maximum(1 - away, 0)
    return made / made.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["lanczos", "bicubic", "bilinear"])
def test_resizing_follows_the_formula(size: tuple[int, int, int, int], mode: str) -> None:
    """First across, then down, rounded to 8 bits after each, within what sixteen-bit weights can tell."""
    width, height, new_width, new_height = size
    frame = picture(width, height)
    across = numpy.clip(numpy.einsum("ow,hwc->hoc", weights(width, new_width, mode), frame), 0, 255).round()
    expected = numpy.clip(numpy.einsum("oh,hwc->owc", weights(height, new_height, mode), across), 0, 255).round()
    made = resize(torch.from_numpy(frame).permute(2, 0, 1), new_width, new_height, mode)
    off = numpy.abs(made.permute(1, 2, 0).numpy().astype(int) - expected)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.03


def test_a_frame_of_the_right_size_stays_as_it_is() -> None:
    frame = torch.from_numpy(picture(20, 10)).permute(2, 0, 1)
    assert torch.equal(resize(frame, 20, 10, "lanczos"), frame)


def test_settings_that_are_not_done_are_refused(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    for table, words in (
        ({"do_resize": False}, "do_resize off"),
        ({"resample": 0}, "resample is 0"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"rescale_factor": "x"}, "rescale_factor"),
        ({"resample": "x"}, "whole number"),
    ):
        with pytest.raises(StartError, match=words):
            frame_settings(tmp_path, table, 1, half, half)


def processed(video: Video, processor: object) -> dict[str, torch.Tensor]:
    """What transformers' own video processor makes of frames that are already chosen."""
    frames = numpy.frombuffer(video.pixels, numpy.uint8).reshape(-1, video.height, video.width, 3)
    metadata = VideoMetadata(len(frames), len(frames) / video.duration_s, duration=video.duration_s)
    return dict(processor([frames.copy()], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"))  # type: ignore[operator]


@pytest.mark.parametrize("video", FILMS)
def test_smolvlm_frames_are_those_of_its_video_processor(smolvlm: Path, video: Video) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    watcher = SmolVLMVideo(smolvlm, Vocabulary(smolvlm), 9, "<image>")
    ours = watcher.normalise(watcher.prepare(watcher.plan(video)).values, CPU)
    theirs = processed(video, SmolVLMVideoProcessor.from_pretrained(smolvlm))["pixel_values"][0]
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("video", FILMS)
def test_qwen_patches_are_those_of_its_video_processor(qwen: Path, video: Video) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    watcher = QwenVideo(qwen, Vocabulary(qwen), 14, 2, 2.0)
    plan = watcher.plan(video)
    made = processed(video, Qwen2VLVideoProcessor.from_pretrained(qwen, cap_pixels_per_frame=True))
    assert made["video_grid_thw"].tolist() == [[plan.times, *plan.grid]]
    assert (watcher.normalise(watcher.prepare(plan).values, CPU) - made["pixel_values_videos"]).abs().max() < 1e-5


def test_qwens_videos_keep_to_one_budget(tmp_path: Path, qwen: Path) -> None:
    """By the models' recipe, where the checkpoint says nothing: 768 tokens a pair of frames, 115,200 for all."""
    watcher = QwenVideo(tmp_path, Vocabulary(qwen), 14, 2, 2.0)

    def tokens(frames: int) -> int:
        pixels = bytes(320 * 180 * 3 * frames)
        return len(watcher.plan(Video(pixels, 320, 180, tuple(map(float, range(frames))), frames, "0" * 64)).token_ids)

    assert tokens(2) == 144  # 16 x 9, the least that covers 128 in this shape
    assert tokens(60) == 30 * 144
    large = Video(bytes(1920 * 1080 * 3 * 2), 1920, 1080, (0.0, 1.0), 2.0, "0" * 64)
    assert len(watcher.plan(large).token_ids) == 36 * 20


@pytest.mark.parametrize(("frames", "tokens_a_pair"), [(2, 12), (20, 6), (200, 2)])
def test_the_more_frames_the_smaller_each(tmp_path: Path, qwen: Path, frames: int, tokens_a_pair: int) -> None:
    size = {"shortest_edge": 4 * 784, "longest_edge": 16 * 784}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"size": size, "max_video_tokens": 100}))
    watcher = QwenVideo(tmp_path, Vocabulary(qwen), 14, 2, 2.0)
    plan = watcher.plan(film((0, 0, 0), frames, 160, 120))
    assert len(plan.token_ids) == tokens_a_pair * frames // 2
