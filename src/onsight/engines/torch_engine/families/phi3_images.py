"""How Phi-3.5-vision sees a picture: scaled onto a grid of crops (HD transform), encoded by CLIP, joined row by row.

Follows the image processor and the image embedding that Microsoft published with the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import PIL.Image
import torch
from torch import nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel

_WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Fit:
    """A picture is resized to `width` x `height` px, then padded to `rows` x `columns` crops."""

    width: int
    height: int
    rows: int
    columns: int


def fit(width: int, height: int, most: int, crop: int) -> Fit:
    """The largest scale at which a picture of `width` x `height` px takes at most `most` crops of `crop` px.

    Its longer edge is filled exactly; `rows` or `columns` is 0 for a picture so thin that its shorter edge vanishes.
    """
    if width < height:
        turned = fit(height, width, most, crop)
        return Fit(turned.height, turned.width, turned.columns, turned.rows)
    ratio = width / height
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= most:
        scale += 1
    new_width = scale * crop
    new_height = int(new_width / ratio)
    return Fit(new_width, new_height, math.ceil(new_height / crop), scale)


def cut(
    picture: PIL.Image.Image, size: Fit, crop: int, mean: Sequence[float], deviation: Sequence[float]
) -> torch.Tensor:
    """[1 + rows * columns, 3, crop, crop], normalised: the whole picture first, then its crops row by row.

    A portrait is transposed, handled as a landscape and transposed back: Pillow's resize is not symmetric to the bit.
    """
    portrait = picture.width < picture.height
    width, height = size.width, size.height
    if portrait:
        picture, width, height = picture.transpose(PIL.Image.Transpose.TRANSPOSE), height, width
    padded = PIL.Image.new("RGB", (width, math.ceil(height / crop) * crop), _WHITE)
    padded.paste(picture.resize((width, height), PIL.Image.Resampling.BILINEAR), (0, (padded.height - height) // 2))
    if portrait:
        padded = padded.transpose(PIL.Image.Transpose.TRANSPOSE)
    values = torch.from_numpy(numpy.array(padded)).permute(2, 0, 1).contiguous().float() / 255
    values = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    # Not Pillow's bicubic: torch's, of the normalised values and without smoothing.
    whole = nn.functional.interpolate(values[None], size=(crop, crop), mode="bicubic")
    crops = values.view(3, size.rows, crop, size.columns, crop).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([whole, crops])


class ImageEmbedding(nn.Module):
    """The half of the model that turns crops into features; parts are named as the checkpoint's tensors are."""

    def __init__(self, config: CLIPVisionConfig, words: nn.Embedding, dtype: torch.dtype) -> None:
        """`words`: the language model's table, which a checkpoint may store under this module's name too."""
        super().__init__()
        merged, hidden = 4 * config.hidden_size, words.embedding_dim
        tower = CLIPVisionModel._from_config(config, dtype=dtype, attn_implementation="sdpa")
        self.img_processor = nn.ModuleDict({"vision_model": tower})
        self.glb_GN = nn.Parameter(torch.empty(1, 1, merged, dtype=dtype))
        self.sub_GN = nn.Parameter(torch.empty(1, 1, 1, merged, dtype=dtype))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, hidden, dtype=dtype), nn.GELU(), nn.Linear(hidden, hidden, dtype=dtype)
        )
        self.wte = words
        self.crop = int(config.image_size)
        self._side = self.crop // int(config.patch_size)

    def keep_layers(self, count: int) -> None:
        """Forget the layers of the tower past the one whose output is used."""
        encoder = self.img_processor["vision_model"].get_submodule("encoder")
        layers = encoder.get_submodule("layers")
        if isinstance(layers, nn.ModuleList):
            encoder.register_module("layers", layers[:count])

    def tokens(self, rows: int, columns: int) -> int:
        """How many features a picture of so many crops has: every row ends with a separator, one more is between."""
        side = self._side // 2
        return rows * side * (columns * side + 1) + 1 + side * (side + 1)

    def forward(self, crops: torch.Tensor, grids: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Features [tokens, hidden] of each picture; `crops` holds all pictures' views, one picture after another."""
        patches = self.img_processor["vision_model"](crops).last_hidden_state[:, 1:]  # [views, side * side, dim]
        counts = [1 + rows * columns for rows, columns in grids]
        pictures: list[torch.Tensor] = []
        for views, (rows, columns) in zip(patches.split(counts), grids, strict=True):
            parts = (self._lines(views[1:], rows, columns), self.glb_GN[0], self._lines(views[:1], 1, 1))
            pictures.append(self.img_projection(torch.cat(parts)))
        return pictures

    def _lines(self, views: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """[rows * columns, side * side, dim] -> [rows * half * (columns * half + 1), 4 * dim].

        Two by two neighbouring patches become one; the crops' lines are joined and each ends with the separator.
        """
        half, dim = self._side // 2, views.shape[-1]
        grid = views.view(rows, columns, half, 2, half, 2, dim)
        lines = grid.permute(0, 2, 1, 4, 3, 5, 6).reshape(rows * half, columns * half, 4 * dim)
        ends = self.sub_GN[0].expand(rows * half, 1, -1)
        return torch.cat([lines, ends], dim=1).flatten(0, 1)
