"""What families' video processors have in common: resizing 8-bit frames, and normalising them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from onsight.core.errors import StartError
from onsight.core.messages import Video
from onsight.engines.torch_engine.loading import JsonObject

_MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for its filters, and torch's names for the same."""


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """A checkpoint's own: `mode` of resizing; `mean` and `deviation` of each colour, in 0..255."""

    mode: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def frame_settings(
    folder: Path, table: JsonObject, resample: int, mean: Sequence[float], deviation: Sequence[float]
) -> FrameSettings:
    """Read from a video processor's `table`, with the processor's defaults. Raises StartError for what is not done."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not table.get(step, True):
            raise StartError(f"{folder}: the video settings turn {step} off, which this engine does not do")
    mode = _MODES.get(number(folder, table, "resample", resample))
    if mode is None:
        raise StartError(f"{folder}: the video settings' resample is {table['resample']!r}; known are {_MODES}")
    scale = table.get("rescale_factor", 1 / 255)
    if not isinstance(scale, float | int) or not scale:
        raise StartError(f"{folder}: the video settings' rescale_factor is {scale!r}; it must be a number")
    return FrameSettings(
        mode,
        _colours(folder, table.get("image_mean", mean), scale),
        _colours(folder, table.get("image_std", deviation), scale),
    )


def number(folder: Path, table: JsonObject, name: str, default: int) -> int:
    """A whole number of `table`. Raises StartError when it is something else."""
    value = table.get(name, default)
    if not isinstance(value, int):
        raise StartError(f"{folder}: the video settings' {name} is {value!r}; it must be a whole number")
    return value


def edges(table: JsonObject, name: str) -> JsonObject:
    """One of a processor's sizes, a table of edges; empty when it is not there."""
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _colours(folder: Path, value: object, scale: float) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == 3:
        return tuple(float(one) / scale for one in value)
    raise StartError(f"{folder}: image_mean and image_std must be three numbers each, not {value!r}")


def frame_tensors(video: Video) -> list[torch.Tensor]:
    """Each frame as [3, height, width], 8 bits a channel."""
    shape = (video.height, video.width, 3)
    return [
        torch.from_numpy(numpy.frombuffer(frame, numpy.uint8).reshape(shape).transpose(2, 0, 1).copy())
        for frame in video.frames
    ]


def resize(frame: torch.Tensor, width: int, height: int, mode: str) -> torch.Tensor:
    """[3, height, width], 8 bits; in the very call that torchvision makes for 8-bit frames on a CPU."""
    if tuple(frame.shape[1:]) == (height, width):
        return frame
    sized: torch.Tensor = torch.nn.functional.interpolate(
        frame[None], size=(height, width), mode=mode, align_corners=None if mode == "lanczos" else False, antialias=True
    )[0]
    return sized


def normalise(frames: torch.Tensor, settings: FrameSettings, device: torch.device) -> torch.Tensor:
    """[frames, 3, ...] of 8 bits to float32 on `device`."""
    shape = (1, 3, *(1 for _ in frames.shape[2:]))
    mean = torch.tensor(settings.mean, device=device).view(shape)
    deviation = torch.tensor(settings.deviation, device=device).view(shape)
    return (frames.to(device, torch.float32) - mean) / deviation


def fit_longest(width: int, height: int, longest: int) -> tuple[int, int]:
    """Scale so that the longest edge is `longest` px, the other one even."""
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    return max(width, 1), max(height, 1)
