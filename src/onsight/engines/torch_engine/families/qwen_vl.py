"""Qwen2.5-VL and Holo1.5: a windowed vision tower over pictures of any size, three-axis rotary positions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import PIL.Image
import torch
from transformers.initialization import no_init_weights
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from onsight.core.errors import InvalidRequest, StartError
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder, KeyValueShape
from onsight.engines.torch_engine.families.qwen_sizes import check_stretch, resized
from onsight.engines.torch_engine.families.qwen_video import QwenVideo
from onsight.engines.torch_engine.loading import Checkpoint, image_settings, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Plan, Prompt, VideoPlan
from onsight.engines.torch_engine.vocabulary import Vocabulary

_IMAGE = "<|image_pad|>"
_LOW_PIXELS = 512 * 28 * 28
"""`detail: low`: at most 512 image tokens."""


class QwenVL:
    """See `Family`. A picture keeps its shape: edges rounded to whole merged patches, area within bounds.

    `detail`: "auto" and "high" see up to the checkpoint's own `max_pixels`, "low" at most 401,408 px (512 tokens).
    `min_pixels` and `max_pixels` replace the bounds; together with a smaller `detail` the smaller bound counts.
    """

    image_text = _IMAGE
    chat_template = None

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        """Load the model. Raises StartError."""
        folder = checkpoint.folder
        config = Qwen2_5_VLConfig.from_dict(read_json(folder / "config.json"))
        text = config.text_config
        if "sliding_attention" in text.layer_types:
            raise StartError(f"{folder}: config.json asks for sliding-window attention, which this engine does not do")
        with no_init_weights(), torch.device(checkpoint.device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(
                config, dtype=checkpoint.dtype, attn_implementation="sdpa"
            ).eval()
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.language_model.embed_tokens.weight
        load_weights(model, checkpoint, _rename)
        shape = KeyValueShape(
            text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        )
        self.decoder = Decoder(model.model.language_model, model.lm_head, shape, axes=3)
        self.context_tokens = int(text.max_position_embeddings)
        self._vision = model.model.visual
        self._processor = Qwen2VLImageProcessorPil(**image_settings(folder))
        self._patch = int(self._processor.patch_size)
        self._merge = int(self._processor.merge_size)
        self.image_token_id = vocabulary.require(_IMAGE)
        seconds = float(config.vision_config.tokens_per_second)
        self.watcher = QwenVideo(folder, vocabulary, self._patch, self._merge, seconds)
        media = (vocabulary.find(token) for token in ("<|vision_start|>", "<|vision_end|>"))
        self.media_token_ids = frozenset(
            {self.image_token_id, self.watcher.token_id, *(token for token in media if token is not None)}
        )
        ends = (vocabulary.find(token) for token in ("<|im_end|>", "<|endoftext|>"))
        self.end_token_ids = frozenset(token for token in ends if token is not None)

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        least, most = self._bounds(image)
        check_stretch(image.width, image.height, "image")
        width, height = resized(image.width, image.height, self._patch * self._merge, least, most)
        rows, columns = height // self._patch, width // self._patch
        settings = (least, most)
        key = hashlib.sha256(f"qwen_vl {settings} {image.digest}".encode()).hexdigest()
        tokens = (self.image_token_id,) * (rows * columns // self._merge**2)
        return ImagePlan(image, key, tokens, (rows, columns), settings)

    def _bounds(self, image: Image) -> tuple[int, int]:
        """(least, most) px of the resized picture."""
        options = image.options
        least, most = int(self._processor.size["shortest_edge"]), int(self._processor.size["longest_edge"])
        if options.min_pixels is not None:
            least = options.min_pixels
        if options.max_pixels is not None:
            most = options.max_pixels
        if options.detail == "low":
            most = min(most, _LOW_PIXELS)
            least = min(least, most)
        elif options.max_pixels is not None and options.min_pixels is None:
            least = min(least, most)
        smallest = (self._patch * self._merge) ** 2
        for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
            if value is not None and value < smallest:
                raise InvalidRequest(
                    f"{name} is {value}; this model needs at least {smallest}", param=f"messages.image_url.{name}"
                )
        if least > most:
            raise InvalidRequest(
                f"min_pixels is {least} and max_pixels is {most}; the first must not be greater",
                param="messages.image_url.min_pixels",
            )
        return least, most

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`; the values are [patches, 3 * 2 * patch * patch]."""
        image = plan.image
        picture = PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)
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

    def place(self, prompt: Prompt) -> None:
        """See `Family.place`: text counts up on all axes at once; a picture or video spreads over (time, row, column).

        Text goes on after the longer side of what it follows, however long a video lasts, and the answer after the
        text: so does transformers' `generate`, though a video's last moments then lie past both.
        """
        parts: list[torch.Tensor] = []
        index = position = 0
        for span in prompt.spans:
            parts.append(torch.arange(position, position + span.start - index).expand(3, -1))
            position += span.start - index
            rows, columns = (patches // self._merge for patches in span.plan.grid)
            grid = torch.meshgrid(self._moments(span.plan), torch.arange(rows), torch.arange(columns), indexing="ij")
            parts.append(torch.stack(grid).flatten(1) + position)
            position += max(rows, columns)
            index = span.stop
        rest = len(prompt.token_ids) - index
        parts.append(torch.arange(position, position + rest).expand(3, -1))
        prompt.positions = torch.cat(parts, dim=1)
        prompt.delta = position + rest - len(prompt.token_ids)

    def _moments(self, plan: Plan) -> torch.Tensor:
        """Where its features stand in time, from 0; a picture is one moment."""
        return self.watcher.moments(plan) if isinstance(plan, VideoPlan) else torch.zeros(1, dtype=torch.int64)

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `Family.encode`: the tower keeps pictures, and the moments of a video, apart by their grids."""
        decoder = self.decoder
        grids = torch.tensor([_grid(one.plan) for one in pixels], device=decoder.device)
        patches = torch.cat([self._patches(one) for one in pixels]).to(decoder.dtype)
        features = self._vision(patches, grid_thw=grids).pooler_output  # [merged patches, hidden]
        return list(features.split([len(one.plan.token_ids) for one in pixels]))

    def _patches(self, pixels: Pixels) -> torch.Tensor:
        """Normalised, on the device: [patches, 3 * 2 * patch * patch]."""
        device = self.decoder.device
        if isinstance(pixels.plan, VideoPlan):
            return self.watcher.normalise(pixels.values, device)
        return pixels.values.to(device)


def _grid(plan: Plan) -> tuple[int, int, int]:
    """(moments, rows, columns) of patches."""
    return (plan.times if isinstance(plan, VideoPlan) else 1, *plan.grid)


def _rename(name: str) -> str:
    """Checkpoints from before transformers 4.52 name the two halves differently."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "model.language_model." + name.removeprefix("model.")
    return name
