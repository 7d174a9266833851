"""How Qwen2.5-VL sees pictures: keeping their shape, in merged patches, at positions on three axes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from onsight.core.errors import InvalidRequest
from onsight.core.geometry import Size
from onsight.core.messages import DEFAULT_IMAGE_OPTIONS, Image, ImageOptions
from onsight.engines.torch_engine.families.pictures import as_picture
from onsight.engines.torch_engine.families.qwen_sizes import check_stretch, resized
from onsight.engines.torch_engine.loading import image_settings
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Plan, Prompt, VideoPlan

IMAGE = "<|image_pad|>"
_LOW_PIXELS = 512 * 28 * 28
"""`detail: low`: at most 512 image tokens."""


class QwenImages:
    """The picture half of a checkpoint. Edges are rounded to whole merged patches, the area kept within bounds.

    `detail`: "auto" and "high" see up to the usual bound, "low" at most 401,408 px (512 tokens). `min_pixels` and
    `max_pixels` replace the bounds; together with a smaller `detail` the smaller bound counts. `token_bytes`: what
    `prepare` makes for each image token.
    """

    def __init__(
        self,
        folder: Path,
        image_token_id: int,
        context_tokens: int,
        *,
        most_pixels: int | None = None,
        param: str = "messages.image_url",
    ) -> None:
        """Read the settings in `folder`. Raises StartError.

        The usual upper bound is the checkpoint's own, and no more than `most_pixels`. `context_tokens`: what the
        checkpoint was made for; no picture is made larger than fits. `param`: what a request calls its pictures, for
        error texts.
        """
        self._processor = Qwen2VLImageProcessorPil(**image_settings(folder))
        self._image_token_id = image_token_id
        self._param = param
        self.patch = int(self._processor.patch_size)
        self.merge = int(self._processor.merge_size)
        self._token_pixels = (self.patch * self.merge) ** 2
        self._fitting = context_tokens * self._token_pixels
        self.token_bytes = 3 * int(self._processor.temporal_patch_size) * self._token_pixels * torch.float32.itemsize
        own = int(self._processor.size["longest_edge"])
        self._most = own if most_pixels is None else min(own, most_pixels)
        self._least = min(int(self._processor.size["shortest_edge"]), self._most)

    def plan(self, image: Image) -> ImagePlan:
        """See `Family.plan`."""
        settings = self._bounds(image.options)
        rows, columns = self._patches(image.width, image.height, settings)
        key = hashlib.sha256(f"qwen_vl {settings} {image.digest}".encode()).hexdigest()
        tokens = (self._image_token_id,) * (rows * columns // self.merge**2)
        seen = Size(columns * self.patch, rows * self.patch)
        return ImagePlan(image, key, tokens, (rows, columns), settings, seen)

    def tokens(self, image: Image) -> int:
        """How many stand for it in the prompt; raises as `plan` does, which makes a list of that length."""
        rows, columns = self._patches(image.width, image.height, self._bounds(image.options))
        return rows * columns // self.merge**2

    def merged_patches(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of image tokens that a picture of that size takes under the usual bounds.

        Raises InvalidRequest for a size that no picture has, InvalidMedia for one that is too stretched.
        """
        if width < 1 or height < 1:
            raise InvalidRequest(f"{width}x{height} px is no picture's size; both must be at least 1")
        rows, columns = self._patches(width, height, self._bounds(DEFAULT_IMAGE_OPTIONS))
        return columns // self.merge, rows // self.merge

    def _patches(self, width: int, height: int, bounds: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches, before merging."""
        check_stretch(width, height, "image", self._param)
        new_width, new_height = resized(width, height, self.patch * self.merge, *bounds)
        return new_height // self.patch, new_width // self.patch

    def _bounds(self, options: ImageOptions) -> tuple[int, int]:
        """(least, most) px of the resized picture."""
        least, most = self._least, self._most
        if options.min_pixels is not None:
            least = options.min_pixels
        if options.max_pixels is not None:
            most = options.max_pixels
        if options.detail == "low":
            most = min(most, _LOW_PIXELS)
            least = min(least, most)
        elif options.max_pixels is not None and options.min_pixels is None:
            least = min(least, most)
        for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
            if value is not None and value < self._token_pixels:
                raise InvalidRequest(
                    f"{name} is {value}; this model needs at least {self._token_pixels}", param=f"{self._param}.{name}"
                )
        if least > self._fitting:
            raise InvalidRequest(
                f"min_pixels is {least}, but this model's context holds a picture of {self._fitting} px at most",
                param=f"{self._param}.min_pixels",
            )
        if least > most:
            raise InvalidRequest(
                f"min_pixels is {least} and max_pixels is {most}; the first must not be greater",
                param=f"{self._param}.min_pixels",
            )
        return least, most

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`; the values are [patches, 3 * 2 * patch * patch]."""
        image = plan.image
        picture = as_picture(image)
        least, most = plan.settings
        made = self._processor(
            images=[picture], size={"shortest_edge": least, "longest_edge": most}, return_tensors="pt"
        )
        _, rows, columns = made["image_grid_thw"][0].tolist()
        if (rows, columns) != plan.grid:
            raise RuntimeError(
                f"a picture of {image.width}x{image.height} px became {rows, columns} patches, planned were {plan.grid}"
            )
        return Pixels(plan, made["pixel_values"])

    def place(self, prompt: Prompt, moments: Callable[[Plan], torch.Tensor] | None = None) -> None:
        """See `Family.place`: text counts up on all axes at once; a picture or video spreads over (time, row, column).

        `moments`: where the features of a plan stand in time, from 0; without it everything is one moment. Text goes on
        after the furthest position of what it follows, on any axis: as the models were trained (docs/decisions/0023).
        """
        parts: list[torch.Tensor] = []
        index = position = 0
        for span in prompt.spans:
            parts.append(torch.arange(position, position + span.start - index).expand(3, -1))
            position += span.start - index
            rows, columns = (patches // self.merge for patches in span.plan.grid)
            times = torch.zeros(1, dtype=torch.int64) if moments is None else moments(span.plan)
            grid = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
            parts.append(torch.stack(grid).flatten(1) + position)
            position += max(int(times[-1]) + 1, rows, columns)
            index = span.stop
        rest = len(prompt.token_ids) - index
        parts.append(torch.arange(position, position + rest).expand(3, -1))
        prompt.positions = torch.cat(parts, dim=1)
        prompt.delta = position + rest - len(prompt.token_ids)


def encode(vision: nn.Module, patches: Sequence[torch.Tensor], plans: Sequence[Plan]) -> list[torch.Tensor]:
    """Features of each plan's normalised patches, [its tokens, hidden], moment by moment and row by row.

    `patches`: [patches, 3 * 2 * patch * patch] each, on the tower's device and in its number format. The tower keeps
    pictures, and the moments of a video, apart by their grids.
    """
    grids = [(plan.times if isinstance(plan, VideoPlan) else 1, *plan.grid) for plan in plans]
    made = vision(torch.cat(list(patches)), grid_thw=torch.tensor(grids, device=patches[0].device))
    features: torch.Tensor = made.pooler_output  # [merged patches, hidden]
    return list(torch.split(features, [len(plan.token_ids) for plan in plans]))
