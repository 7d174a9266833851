"""Phi-3.5-vision: CLIP crops in an HD grid, a Phi-3 decoder with LongRoPE; our own port, for transformers has none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.initialization import no_init_weights
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM

from onsight.core.errors import InvalidMedia, StartError
from onsight.core.geometry import Size
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.key_values import KeyValueShape
from onsight.engines.torch_engine.families.long_rope import LONG, LongRope
from onsight.engines.torch_engine.families.phi3_images import Fit, ImageEmbedding, cut, fit
from onsight.engines.torch_engine.families.pictures import as_picture, refuse_pixel_bounds
from onsight.engines.torch_engine.families.product import store_in_blocks
from onsight.engines.torch_engine.loading import Checkpoint, JsonObject, image_settings, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Prompt
from onsight.engines.torch_engine.tool_syntax import PLAIN
from onsight.engines.torch_engine.vocabulary import Vocabulary

_IMAGE = "<|image|>"
_FINE, _COARSE, _LOW = 16, 4, 1
"""Most crops of a picture alone in its request, of one among several, and under `detail: low`; Microsoft's advice."""
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_CLIP_VIT_L_14_336: JsonObject = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_NOT_THE_DECODERS = (
    "img_processor", "embd_layer", "auto_map", "architectures", "model_type", "transformers_version",
    "_attn_implementation", "_name_or_path", "torch_dtype", "dtype",
)  # fmt: skip
_LONG_READ = 1 << 61
"""Taken from the first entry of `identity`, so that keys of long factors are never reused under short ones."""


class Phi3Vision:
    """See `Family`. A picture is a grid of crops, rows before columns, and then the whole of it as one more.

    `detail`: "auto" takes at most 16 crops of a picture that is alone in its request and 4 of one among several,
    "high" always 16, "low" 1. Pixel bounds are refused. So a second picture in a conversation has the first one looked
    at again, more coarsely; who wants to avoid that says "high" or "low".

    A request reads with LongRoPE's short factors while prompt and answer together are within the length that the
    decoder was first trained for (4096 tokens), and past it with the long ones: what was read before is then read
    anew, as the reference does, for old keys would be turned by other angles than new ones. The other requests of the
    batch have no part in the choice. Prefixes are reused only between requests that read with the same factors.
    """

    image_text = "<|image_{number}|>"
    chat_template = None
    watcher = None
    tool_syntax = PLAIN

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        """Load the model. Raises StartError."""
        folder = checkpoint.folder
        table = read_json(folder / "config.json")
        config, vision = _decoder_config(folder, table), _vision_config(folder, table)
        layers_used = _layers_used(folder, table, vision.num_hidden_layers)
        with no_init_weights(), torch.device(checkpoint.device):
            model = Phi3ForCausalLM._from_config(config, dtype=checkpoint.dtype, attn_implementation="sdpa").eval()
            if config.tie_word_embeddings:
                model.lm_head.weight = model.model.embed_tokens.weight
            images = ImageEmbedding(vision, model.model.embed_tokens, checkpoint.dtype).eval()
            model.model.vision_embed_tokens = images
            self._short_tokens: int | None = None
            if config.rope_parameters["rope_type"] == "longrope":
                model.model.rotary_emb = LongRope(config)
                self._short_tokens = int(model.model.rotary_emb.short_tokens)
        load_weights(model, checkpoint, lambda name: name)
        images.keep_layers(layers_used)
        store_in_blocks(images)
        self._images = images
        shape = KeyValueShape(
            config.num_hidden_layers, config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        )
        self.decoder = Decoder(model.model, model.lm_head, shape, axes=1)
        self.context_tokens = int(config.max_position_embeddings)
        settings = image_settings(folder)
        self._mean = _three(folder, settings.get("image_mean", _MEAN))
        self._deviation = _three(folder, settings.get("image_std", _DEVIATION))
        self.image_token_id = vocabulary.require(_IMAGE)
        self.media_token_ids = frozenset({self.image_token_id})
        self.end_token_ids = vocabulary.those_of("<|end|>", "<|endoftext|>")

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        options = image.options
        refuse_pixel_bounds(options, "crops")
        most = {"low": _LOW, "high": _FINE, "auto": _FINE if among == 1 else _COARSE}[options.detail]
        size = fit(image.width, image.height, most, self._images.crop)
        if not (size.rows and size.columns):
            raise InvalidMedia(
                f"image is {image.width}x{image.height} px, too thin for this model: crop it",
                param="messages.image_url",
            )
        settings = (most, self._images.crop, size.width, size.height)
        key = hashlib.sha256(f"phi3_vision {settings} {image.digest}".encode()).hexdigest()
        tokens = (self.image_token_id,) * self._images.tokens(size.rows, size.columns)
        seen = Size(size.width, size.height)
        return ImagePlan(image, key, tokens, (size.rows, size.columns), settings, seen)

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`; the values are [1 + crops, 3, crop, crop]."""
        image = plan.image
        picture = as_picture(image)
        _, crop, width, height = plan.settings
        return Pixels(plan, cut(picture, Fit(width, height, *plan.grid), crop, self._mean, self._deviation))

    def place(self, prompt: Prompt) -> None:
        """See `Family.place`: positions count up, and say which factors they are turned by."""
        count = len(prompt.token_ids)
        long = self._short_tokens is not None and count > self._short_tokens
        prompt.delta = LONG if long else 0
        prompt.positions = torch.arange(count)[None] + prompt.delta
        prompt.placed_for = None if long else self._short_tokens
        if long:
            prompt.identity[0] -= _LONG_READ

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `Family.encode`: all crops of all pictures in one batch."""
        crops = torch.cat([one.values for one in pixels]).to(self.decoder.device, self.decoder.dtype)
        features: list[torch.Tensor] = self._images(crops, [one.plan.grid for one in pixels])
        return features


def _decoder_config(folder: Path, table: JsonObject) -> Phi3Config:
    """The decoder's half of config.json; "su" is what LongRoPE was called at first."""
    inner = {name: value for name, value in table.items() if name not in _NOT_THE_DECODERS}
    scaling = inner.get("rope_scaling")
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in ("su", "longrope"):
            raise StartError(f"{folder}: config.json asks for rope_scaling {kind!r}; this family knows su and longrope")
        rest = {name: value for name, value in scaling.items() if name != "type"}
        longest, first = inner.get("max_position_embeddings"), inner.get("original_max_position_embeddings")
        if not isinstance(longest, int) or not isinstance(first, int):
            raise StartError(f"{folder}: config.json gives LongRoPE but not the lengths that it is stretched between")
        inner["rope_scaling"] = {"factor": longest / first} | rest | {"rope_type": "longrope"}
    try:
        config = Phi3Config(**inner)
    except (ValueError, TypeError, KeyError) as error:
        raise StartError(f"{folder}: config.json is no Phi-3 configuration: {' '.join(str(error).split())}") from None
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        raise StartError(f"{folder}: config.json asks for sliding-window attention, which this engine does not do")
    return config


def _part(table: JsonObject, name: str) -> JsonObject:
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _vision_config(folder: Path, table: JsonObject) -> CLIPVisionConfig:
    """CLIP's ViT-L/14 at 336 px, which the checkpoint names but does not describe, unless it does (`vision_config`)."""
    wanted = {"use_hd_transform": True, "with_learnable_separator": True, "hd_transform_order": "sub_glb"}
    found = {name: _part(table, "embd_layer").get(name) for name in wanted}
    if found != wanted or _part(table, "img_processor").get("type_feature", "patch") != "patch":
        raise StartError(f"{folder}: config.json describes another image embedding than Phi-3.5-vision's: {found}")
    return CLIPVisionConfig(**(_CLIP_VIT_L_14_336 | _part(_part(table, "img_processor"), "vision_config")))


def _layers_used(folder: Path, table: JsonObject, layers: int) -> int:
    """How many layers of the tower run: `layer_idx` counts its hidden states, the embeddings being the first."""
    index = _part(table, "img_processor").get("layer_idx", -2)
    if not isinstance(index, int) or not -layers - 1 <= index <= layers:
        raise StartError(f"{folder}: config.json's layer_idx is {index}; the vision tower has {layers} layers")
    return index if index >= 0 else layers + 1 + index


def _three(folder: Path, value: object) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == 3:
        return tuple(float(one) for one in value)
    raise StartError(f"{folder}: image_mean and image_std must be three numbers each, not {value!r}")
