"""Qwen2.5-VL and Holo1.5: a windowed vision tower over pictures of any size, three-axis rotary positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from onsight.core.errors import StartError
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.key_values import KeyValueShape
from onsight.engines.torch_engine.families.product import store_in_blocks
from onsight.engines.torch_engine.families.qwen_images import IMAGE, QwenImages, encode
from onsight.engines.torch_engine.families.qwen_video import QwenVideo
from onsight.engines.torch_engine.loading import Checkpoint, empty_model, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Plan, Prompt, VideoPlan
from onsight.engines.torch_engine.tool_syntax import HERMES
from onsight.engines.torch_engine.vocabulary import Vocabulary


class QwenVL:
    """See `Family`, `QwenImages` for what `detail`, `min_pixels` and `max_pixels` do, and `QwenVideo`."""

    image_text = IMAGE
    chat_template = None
    tool_syntax = HERMES

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        """Load the model. Raises StartError."""
        folder = checkpoint.folder
        config = read_config(checkpoint)
        text = config.text_config
        model = empty_model(Qwen2_5_VLForConditionalGeneration, config, checkpoint)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.language_model.embed_tokens.weight
        load_weights(model, checkpoint, _rename)
        shape = KeyValueShape(
            text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        )
        self.decoder = Decoder(model.model.language_model, model.lm_head, shape, axes=3)
        self.context_tokens = int(text.max_position_embeddings)
        self._vision = model.model.visual
        store_in_blocks(self._vision)
        self.image_token_id = vocabulary.require(IMAGE)
        self._images = QwenImages(folder, self.image_token_id, self.context_tokens)
        seconds = float(config.vision_config.tokens_per_second)
        self.watcher = QwenVideo(folder, vocabulary, self._images.patch, self._images.merge, seconds)
        borders = vocabulary.those_of("<|vision_start|>", "<|vision_end|>")
        self.media_token_ids = borders | {self.image_token_id, self.watcher.token_id}
        self.end_token_ids = vocabulary.those_of("<|im_end|>", "<|endoftext|>")

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        return self._images.plan(image)

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`."""
        return self._images.prepare(plan)

    def place(self, prompt: Prompt) -> None:
        """See `Family.place`."""
        self._images.place(prompt, self._moments)

    def _moments(self, plan: Plan) -> torch.Tensor:
        """Where its features stand in time, from 0; a picture is one moment."""
        return self.watcher.moments(plan) if isinstance(plan, VideoPlan) else torch.zeros(1, dtype=torch.int64)

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `Family.encode`."""
        patches = [self._patches(one).to(self.decoder.dtype) for one in pixels]
        return encode(self._vision, patches, [one.plan for one in pixels])

    def _patches(self, pixels: Pixels) -> torch.Tensor:
        """Normalised, on the device: [patches, 3 * 2 * patch * patch]."""
        device = self.decoder.device
        if isinstance(pixels.plan, VideoPlan):
            return self.watcher.normalise(pixels.values, device)
        return pixels.values.to(device)


def read_config(checkpoint: Checkpoint) -> Qwen2_5_VLConfig:
    """config.json of either layout, with the text model's settings in a part of their own or beside the rest.

    Raises StartError when it asks for what the engine does not do.
    """
    config = Qwen2_5_VLConfig.from_dict(read_json(checkpoint.folder / "config.json"))
    if "sliding_attention" in config.text_config.layer_types:
        raise StartError(
            f"{checkpoint.folder}: config.json asks for sliding-window attention, which this engine does not do"
        )
    return config


def _rename(name: str) -> str:
    """Checkpoints from before transformers 4.52 name the two halves differently."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "model.language_model." + name.removeprefix("model.")
    return name
