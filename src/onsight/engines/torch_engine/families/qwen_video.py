"""How Qwen2.5-VL looks at videos: frames of one size in pairs, placed in time by the seconds between them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from onsight.core.messages import Video
from onsight.engines.torch_engine.families.frames import (
    edges,
    frame_settings,
    frame_tensors,
    normalise,
    number,
    resize,
)
from onsight.engines.torch_engine.families.qwen_sizes import check_stretch, resized
from onsight.engines.torch_engine.loading import video_settings
from onsight.engines.torch_engine.prompt import Pixels, VideoPlan
from onsight.engines.torch_engine.turns import VideoWords
from onsight.engines.torch_engine.vocabulary import Vocabulary

_VIDEO = "<|video_pad|>"
_BICUBIC = 3
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_LEAST_TOKENS, _MOST_TOKENS, _ALL_TOKENS = 128, 768, 128_000
"""What a pair of frames, and a whole video, may take by the models' own recipe (qwen-vl-utils)."""


class QwenVideo:
    """See `Watcher`. Each pair of frames has an even share of the budget for the whole video, within bounds of its own.

    The bounds are those of the checkpoint's video settings, else of the models' recipe; never of its pictures, which
    may be twenty times as large.
    """

    words = VideoWords(_VIDEO)

    def __init__(self, folder: Path, vocabulary: Vocabulary, patch: int, merge: int, tokens_per_second: float) -> None:
        """`patch`: px; `merge`: patches a side that become one token. Raises StartError."""
        table = video_settings(folder)
        self._settings = frame_settings(folder, table, _BICUBIC, _CLIP_MEAN, _CLIP_DEVIATION)
        self._patch, self._merge = patch, merge
        self._together = number(folder, table, "temporal_patch_size", 2)
        self._tokens_per_second = tokens_per_second
        area = (patch * merge) ** 2
        size = edges(table, "size")
        self._least = number(folder, size, "shortest_edge", number(folder, table, "min_pixels", _LEAST_TOKENS * area))
        self._most = number(folder, size, "longest_edge", number(folder, table, "max_pixels", _MOST_TOKENS * area))
        self._budget = int(number(folder, table, "max_video_tokens", _ALL_TOKENS) * area * 0.9)
        self.token_id = vocabulary.require(_VIDEO)

    def plan(self, video: Video) -> VideoPlan:
        """See `Watcher.plan`."""
        check_stretch(video.width, video.height, "video", "messages.video_url")
        count = len(video.timestamps)
        most = max(min(self._most, self._budget * self._together // count), int(self._least * 1.05))
        width, height = resized(video.width, video.height, self._patch * self._merge, self._least, most)
        rows, columns = height // self._patch, width // self._patch
        times = -(-count // self._together)
        settings = (width, height)
        key = hashlib.sha256(f"qwen_vl video {settings} {video.digest}".encode()).hexdigest()
        tokens = (self.token_id,) * (times * rows * columns // self._merge**2)
        return VideoPlan(video, key, tokens, (rows, columns), settings, times)

    def prepare(self, plan: VideoPlan) -> Pixels:
        """See `Watcher.prepare`; the values are [patches, 3, frames together * patch * patch], 8 bits."""
        width, height = plan.settings
        frames = [resize(frame, width, height, self._settings.mode) for frame in frame_tensors(plan.video)]
        frames += frames[-1:] * (plan.times * self._together - len(frames))
        (rows, columns), merge, patch = plan.grid, self._merge, self._patch
        grid = (plan.times, self._together, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        # Patches of one merged patch stand together; within a patch colour, time, row, column.
        patches = torch.stack(frames).view(grid).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return Pixels(plan, patches.reshape(plan.times * rows * columns, 3, -1))

    def normalise(self, patches: torch.Tensor, device: torch.device) -> torch.Tensor:
        """[patches, 3, n] to float32 on `device`, [patches, 3 * n]."""
        return normalise(patches, self._settings, device).flatten(1)

    def moments(self, plan: VideoPlan) -> torch.Tensor:
        """[times]: each pair's place on the time axis, from 0, in whole steps of which a second has several."""
        seconds_a_pair = self._together * plan.video.duration_s / len(plan.video.timestamps)
        return (torch.arange(plan.times) * (self._tokens_per_second * seconds_a_pair)).long()
