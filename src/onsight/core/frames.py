"""Which frames of a video a model looks at."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

from onsight.core.errors import InvalidRequest
from onsight.core.messages import VideoOptions

Spread = Literal["ends", "starts"]


@dataclass(frozen=True, slots=True)
class FrameRule:
    """How a family picks frames; each is what the video processor of its checkpoints does.

    `fps`: frames looked at for a second of video, `min_frames` at least and `max_frames` at most; a request may ask
    for another `fps` or `max_frames`. `multiple`: the count is rounded down to a multiple of it.
    `spread`: "ends" takes the first and the last frame and what lies evenly between them; "starts" cuts the video
    into equal stretches and takes each one's first frame. `skip_s`: with "ends", seconds left out at both ends of a
    video that is too long to be looked at closely.
    """

    fps: float
    max_frames: int
    spread: Spread
    min_frames: int = 1
    multiple: int = 1
    skip_s: float = 0.0

    def pick(self, total: int, rate: float, options: VideoOptions, most: int) -> tuple[int, ...]:
        """Indices, ascending, of the frames to look at in a video of `total` frames at `rate` frames a second.

        `most`: the server's own limit. Raises InvalidRequest when `options` ask for more than that, or for too few.
        """
        fps = self.fps if options.fps is None else options.fps
        limit = min(self.max_frames, most)
        if options.max_frames is not None:
            limit = options.max_frames
            if limit > most:
                raise InvalidRequest(f"max_frames is {limit}; this server looks at {most} frames at most")
            if limit < self.multiple:
                raise InvalidRequest(f"max_frames is {limit}; this model needs at least {self.multiple}")
        if self.spread == "ends":
            return self._between_the_ends(total, rate, fps, limit)
        return self._at_the_starts(total, rate, fps, limit)

    def _between_the_ends(self, total: int, rate: float, fps: float, limit: int) -> tuple[int, ...]:
        """What transformers' SmolVLMVideoProcessor picks, up to the order of its floating-point sums."""
        duration_s = total / rate
        count = max(1, self.min_frames, min(round(fps * duration_s), limit))
        first, last = 0, total - 1
        # Times `fps`, not divided by it: that is what the models' own processor compares.
        if self.skip_s > 0 and duration_s - 2 * self.skip_s > limit * fps:
            first, last = int(self.skip_s * rate), min(int(total - self.skip_s * rate), total - 1)
        if first >= last:
            first, last = 0, total - 1
        if count == 1:
            return (first,)
        step = (last - first) / (count - 1)
        return tuple(sorted({last, *(floor(place * step + first) for place in range(count - 1))}))

    def _at_the_starts(self, total: int, rate: float, fps: float, limit: int) -> tuple[int, ...]:
        """What transformers' Qwen2VLVideoProcessor picks; a video of fewer frames than `multiple` gives them all."""
        limit = min(limit, total) // self.multiple * self.multiple
        wanted = min(max(total / rate * fps, self.min_frames), limit)
        count = floor(wanted / self.multiple) * self.multiple
        if count == 0:
            count = min(total, self.multiple)
        return tuple(place * total // count for place in range(count))
