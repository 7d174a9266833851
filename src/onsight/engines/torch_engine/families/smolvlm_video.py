"""How SmolVLM2 looks at videos: frames of one view each, each with its time before it."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import torch
from num2words import num2words
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from onsight.core.messages import Video
from onsight.engines.torch_engine.families.frames import (
    edges,
    fit_longest,
    frame_settings,
    frame_tensors,
    normalise,
    number,
    resize,
)
from onsight.engines.torch_engine.loading import image_settings, video_settings
from onsight.engines.torch_engine.prompt import Pixels, VideoPlan
from onsight.engines.torch_engine.turns import VideoWords
from onsight.engines.torch_engine.vocabulary import Vocabulary

_LANCZOS = 1
_HALF = (0.5, 0.5, 0.5)
_LARGEST_EDGE_PX = 4096
"""transformers never scales a frame past this."""


class SmolVLMVideo:
    """See `Watcher`. A frame is never split; prompts with a video follow the template that the processor swaps in."""

    words = VideoWords("<video>", DEFAULT_CHAT_TEMPLATE)

    def __init__(self, folder: Path, vocabulary: Vocabulary, token_id: int, view: str) -> None:
        """`view`: what stands for one frame in the prompt. Raises StartError."""
        # As transformers does: what a checkpoint says of pictures holds for its videos when it says nothing of these.
        table = video_settings(folder) or image_settings(folder)
        self._settings = frame_settings(folder, table, _LANCZOS, _HALF, _HALF)
        sampling = table.get("video_sampling")
        size = edges(table, "size") or edges(sampling if isinstance(sampling, dict) else {}, "video_size")
        self._longest = min(_LARGEST_EDGE_PX, number(folder, size, "longest_edge", 4 * 364))
        self._edge = number(folder, edges(table, "max_image_size"), "longest_edge", 364)
        self._vocabulary = vocabulary
        self._view = view
        self.token_id = token_id

    def plan(self, video: Video) -> VideoPlan:
        """See `Watcher.plan`."""
        count = len(video.timestamps)
        times = [f"{int(second // 60):02d}:{int(second % 60):02d}" for second in video.timestamps]
        first, *rest = (FRAME_TIMESTAMP_MESSAGE.format(timestamp=time) for time in times)
        lasting = timedelta(seconds=int(video.duration_s))
        intro = DEFAULT_VIDEO_INTRO.format(frame_count=num2words(count), video_duration=str(lasting))
        text = self._view + "".join(f"{words}{self._view}" for words in rest)
        settings = (self._longest, self._edge)
        return VideoPlan(
            video,
            hashlib.sha256(f"smolvlm video {settings} {video.digest}".encode()).hexdigest(),
            tuple(self._vocabulary.encode([(text, True)])),
            (0, 0),
            settings,
            count,
            intro + first,
            DEFAULT_MEDIA_OUTTRO,
        )

    def prepare(self, plan: VideoPlan) -> Pixels:
        """See `Watcher.prepare`; the values are [frames, 3, edge, edge], 8 bits."""
        longest, edge = plan.settings
        width, height = fit_longest(plan.video.width, plan.video.height, longest)
        mode = self._settings.mode
        sized = (resize(frame, width, height, mode) for frame in frame_tensors(plan.video))
        return Pixels(plan, torch.stack([resize(frame, edge, edge, mode) for frame in sized]))

    def normalise(self, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
        """[frames, 3, edge, edge] to float32 on `device`."""
        return normalise(frames, self._settings, device)
