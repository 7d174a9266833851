"""Llama 3.2 Vision (mllama): tiles seen by cross-attention layers that stand between a Llama's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.mllama.configuration_mllama import MllamaConfig
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.modeling_mllama import (
    MllamaCrossAttentionDecoderLayer,
    MllamaForConditionalGeneration,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from onsight.core.errors import InvalidRequest
from onsight.core.geometry import Size
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.fused import FusedLayer, signed
from onsight.engines.torch_engine.families.key_values import CrossShape, KeyValues, KeyValueShape, Sight
from onsight.engines.torch_engine.families.pictures import as_picture, refuse_pixel_bounds
from onsight.engines.torch_engine.families.product import AnyLinear, product, store_in_blocks
from onsight.engines.torch_engine.loading import Checkpoint, empty_model, image_settings, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Prompt
from onsight.engines.torch_engine.tool_syntax import PLAIN
from onsight.engines.torch_engine.vocabulary import Vocabulary

_IMAGE = "<|image|>"
_MOST_PICTURES = 4
"""Places for so many are kept in every slot; the model was not trained to see more."""
_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""The published templates put a system turn with today's date before text that has no picture, and refuse (the first of
them) or mangle a system turn that somebody wrote: this is the turns alone, as they do with pictures and no system."""


class MllamaDecoder(Decoder):
    """See `Decoder`. The key-value cache holds the layers that see text; the others see `KeyValues.sight`."""

    def __init__(self, text_model: nn.Module, head: AnyLinear, shape: KeyValueShape) -> None:
        self._crossing: list[MllamaCrossAttentionDecoderLayer] = []
        super().__init__(text_model, head, shape, axes=1)
        self.project = self._project

    def _fuse(self, layer: nn.Module, place: int) -> nn.Module:
        """See `Decoder._fuse`. Each kind of layer counts for itself: that is how the two caches number them."""
        if not isinstance(layer, MllamaCrossAttentionDecoderLayer):
            return super()._fuse(layer, place - len(self._crossing))
        layer.cross_attn.layer_idx = len(self._crossing)
        self._crossing.append(layer)
        crossing: nn.Module = layer
        return crossing

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, key_values: KeyValues
    ) -> torch.Tensor:
        """See `Decoder.forward`; text without pictures passes the cross-attention layers by."""
        rotary = signed(*self._rotary(embeds, positions[0]))
        sight = key_values.sight
        hidden = embeds
        for layer in self._layers:
            if isinstance(layer, FusedLayer):
                hidden = layer(hidden, mask, rotary, key_values)
            elif sight is not None:
                hidden = _look(layer, hidden, sight)
        normed: torch.Tensor = self._norm(hidden)
        return normed

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        """See `Decoder.project`."""
        made = []
        for layer in self._crossing:
            attention = layer.cross_attn
            dims = (len(features), self.shape.heads, self.shape.dim)
            keys = attention.k_norm(attention.k_proj(features).view(dims))
            values = attention.v_proj(features).view(dims)
            made.append(torch.stack([keys, values]).transpose(1, 2))  # [2, heads, tokens, dim]
        return torch.stack(made)


def _look(layer: MllamaCrossAttentionDecoderLayer, hidden: torch.Tensor, sight: Sight) -> torch.Tensor:
    """[rows, tokens, hidden] -> the same; rows without pictures come out as they went in."""
    seeing: torch.Tensor = layer(
        hidden,
        cross_attention_states=None,
        cross_attention_mask=sight.mask,
        attention_mask=None,
        full_text_row_masked_out_mask=sight.told,
        past_key_values=sight,
    )
    return seeing if sight.rows is None else torch.where(sight.rows, seeing, hidden)


class Mllama:
    """See `Family`. A picture is fitted into the best of the canvases of up to four tiles.

    `detail`: "low" is one tile; "high" and "auto" do what the checkpoint was trained for. Pixel bounds are refused.
    """

    image_text = _IMAGE
    image_token_id = None
    chat_template = _TEMPLATE
    watcher = None
    tool_syntax = PLAIN

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        """Load the model. Raises StartError."""
        folder = checkpoint.folder
        config = MllamaConfig.from_dict(read_json(folder / "config.json"))
        model = empty_model(MllamaForConditionalGeneration, config, checkpoint)
        load_weights(model, checkpoint, _rename)
        self._vision = model.model.vision_model
        store_in_blocks(self._vision)
        self._projector = product(model.model.multi_modal_projector)
        self._processor = MllamaImageProcessorPil(**image_settings(folder))
        self._tiles = int(self._processor.max_image_tiles)
        text = config.text_config
        crossing = len(text.cross_attention_layers)
        shape = KeyValueShape(
            text.num_hidden_layers - crossing,
            text.num_key_value_heads,
            text.hidden_size // text.num_attention_heads,
            CrossShape(crossing, _MOST_PICTURES, self._tiles, int(self._vision.num_patches)),
        )
        self.decoder = MllamaDecoder(model.model.language_model, model.lm_head, shape)
        self.context_tokens = int(text.max_position_embeddings)
        self._image_id = vocabulary.require(_IMAGE)
        self.media_token_ids = frozenset({self._image_id})
        self.end_token_ids = vocabulary.those_of(*_ENDS)

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        options = image.options
        refuse_pixel_bounds(options, "tiles")
        tile = int(self._processor.size["height"])
        most = 1 if options.detail == "low" else self._tiles
        height, width = get_optimal_tiled_canvas(image.height, image.width, most, tile)
        key = hashlib.sha256(f"mllama {(most, tile)} {image.digest}".encode()).hexdigest()
        # Inside the canvas of tiles the picture keeps its shape; the rest is padding.
        seen = get_image_size_fit_to_canvas(image.height, image.width, int(height), int(width), tile)
        grid = (int(height) // tile, int(width) // tile)
        return ImagePlan(image, key, (self._image_id,), grid, (most, tile), Size(int(seen[1]), int(seen[0])))

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`; the values are [tiles, 3, tile, tile], zero past the picture's own tiles."""
        image = plan.image
        picture = as_picture(image)
        made = self._processor(images=[[picture]], max_image_tiles=plan.settings[0], return_tensors="pt")
        tiles, (rows, columns) = int(made["num_tiles"][0][0]), plan.grid
        if tiles != rows * columns:
            raise RuntimeError(
                f"a picture of {image.width}x{image.height} px was cut into {tiles} tiles, planned were {plan.grid}"
            )
        values = made["pixel_values"][0, 0]
        return Pixels(plan, nn.functional.pad(values, (0, 0, 0, 0, 0, 0, 0, self._tiles - len(values))))

    def place(self, prompt: Prompt) -> None:
        """See `Family.place`: positions count up; a token sees tiles as transformers' processor says.

        Words before the first picture attend to all pictures in transformers, so everything depends on all of them: the
        first token's identity names them, and a prefix is shared only between requests that show the same pictures.
        """
        prompt.positions = torch.arange(len(prompt.token_ids))[None]
        prompt.delta = 0
        if not prompt.spans:
            return
        if len(prompt.spans) > _MOST_PICTURES:
            raise InvalidRequest(
                f"{len(prompt.spans)} pictures in one request; this model sees at most {_MOST_PICTURES}",
                param="messages",
            )
        runs = get_cross_attention_token_mask(prompt.token_ids, self._image_id)
        tiles = [rows * columns for rows, columns in (span.plan.grid for span in prompt.spans)]
        seen = convert_sparse_cross_attention_mask_to_dense([runs], [tiles], self._tiles, len(prompt.token_ids))
        prompt.seen = torch.from_numpy(seen[0]).bool().flatten(1)
        shown = " ".join([str(prompt.identity[0]), *(span.plan.key for span in prompt.spans)])
        prompt.identity[0] = -1 - int(hashlib.sha256(shown.encode()).hexdigest()[:15], 16)

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `Family.encode`: all pictures in one batch, each with all its places, padding tiles included."""
        decoder = self.decoder
        ratios = get_all_supported_aspect_ratios(self._tiles)
        ids = torch.tensor([[ratios.index(one.plan.grid) + 1] for one in pixels])
        counts = torch.tensor([rows * columns for rows, columns in (one.plan.grid for one in pixels)])
        mask = (torch.arange(self._tiles) < counts[:, None]).long()[:, None]  # [pictures, 1, tiles]
        values = torch.stack([one.values for one in pixels])[:, None]  # [pictures, 1, tiles, 3, tile, tile]
        made = self._vision(
            pixel_values=values.to(decoder.device, decoder.dtype),
            aspect_ratio_ids=ids.to(decoder.device),
            aspect_ratio_mask=mask.to(decoder.device),
        ).last_hidden_state
        return list(self._projector(made).flatten(1, 3))  # [tiles x patches, hidden] each


def _rename(name: str) -> str:
    """Checkpoints from before transformers 4.52, the published ones, name the parts differently."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    if name.startswith(("vision_model.", "multi_modal_projector.")):
        return "model." + name
    return name
