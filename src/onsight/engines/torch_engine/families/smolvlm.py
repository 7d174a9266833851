"""SmolVLM, SmolVLM2 and Peek: SigLIP tiles, pixel shuffle, a Llama decoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import PIL.Image
import torch
from transformers.initialization import no_init_weights
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

from onsight.core.errors import Unsupported
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.key_values import KeyValueShape
from onsight.engines.torch_engine.families.product import store_in_blocks
from onsight.engines.torch_engine.loading import Checkpoint, image_settings, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Prompt
from onsight.engines.torch_engine.tool_syntax import PLAIN
from onsight.engines.torch_engine.vocabulary import Vocabulary

_IMAGE = "<image>"
_BORDER = "<fake_token_around_image>"
_GLOBAL = "<global-img>"
_LARGEST_EDGE_PX = 4096
"""transformers never scales a picture past this."""


class SmolVLM:
    """See `Family`. A picture is one view of `max_image_size`, or rows of such tiles and the whole as the last.

    `detail`: "low" never splits; "high" and "auto" do what the checkpoint was trained for. Pixel bounds are refused.
    """

    image_text = _IMAGE
    chat_template = None
    tool_syntax = PLAIN

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
        """Load the model. Raises StartError."""
        folder = checkpoint.folder
        config = SmolVLMConfig.from_dict(read_json(folder / "config.json"))
        with no_init_weights(), torch.device(checkpoint.device):
            model = SmolVLMForConditionalGeneration._from_config(
                config, dtype=checkpoint.dtype, attn_implementation="sdpa"
            ).eval()
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.text_model.embed_tokens.weight
        load_weights(model, checkpoint, lambda name: name)
        text, vision = config.text_config, config.vision_config
        self.decoder = Decoder(
            model.model.text_model,
            model.lm_head,
            KeyValueShape(text.num_hidden_layers, text.num_key_value_heads, text.head_dim),
            axes=1,
        )
        self.context_tokens = int(text.max_position_embeddings)
        self._vision = model.model.vision_model
        self._connector = model.model.connector
        store_in_blocks(self._vision)
        store_in_blocks(self._connector)
        self._features_per_tile = int((vision.image_size // vision.patch_size) ** 2 / config.scale_factor**2)
        self._processor = SmolVLMImageProcessorPil(**image_settings(folder), return_row_col_info=True)
        self._vocabulary = vocabulary
        self.image_token_id = vocabulary.require(_IMAGE)
        others = (vocabulary.find(token) for token in (_BORDER, _GLOBAL))
        self.media_token_ids = frozenset({self.image_token_id, *(token for token in others if token is not None)})
        end = vocabulary.find("<end_of_utterance>")
        self.end_token_ids = frozenset() if end is None else frozenset({end})
        self._blocks: dict[tuple[int, int], tuple[int, ...]] = {}

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        options = image.options
        for name, value in (("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)):
            if value is not None:
                raise Unsupported(
                    f"{name} is {value}, but this model sees tiles of one size; use detail 'low' or 'high' instead",
                    param=f"messages.image_url.{name}",
                )
        split = bool(self._processor.do_image_splitting) and options.detail != "low"
        grid = self._grid(image) if split else (0, 0)
        settings = (int(split), self._tile, int(self._processor.size["longest_edge"]))
        key = hashlib.sha256(f"smolvlm {settings} {image.digest}".encode()).hexdigest()
        return ImagePlan(image, key, self._block(grid), grid, settings)

    @property
    def _tile(self) -> int:
        return int(self._processor.max_image_size["longest_edge"])

    def _grid(self, image: Image) -> tuple[int, int]:
        """(rows, columns) of tiles; (0, 0) for one view. Follows the image processor's own two resizes."""
        longest = int(self._processor.size["longest_edge"])
        width, height = _fit(image.width, image.height, longest)
        width, height = _shrink(width, height, _LARGEST_EDGE_PX)
        tile = self._tile
        if width >= height:
            aspect = width / height
            width = math.ceil(width / tile) * tile
            height = math.ceil(int(width / aspect) / tile) * tile
        else:
            aspect = width / height
            height = math.ceil(height / tile) * tile
            width = math.ceil(int(height * aspect) / tile) * tile
        rows, columns = height // tile, width // tile
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)

    def _block(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """The ids that stand for a picture of so many rows and columns of tiles."""
        known = self._blocks.get(grid)
        if known is None:
            rows, columns = grid
            view = _IMAGE * self._features_per_tile
            text = ""
            for row in range(1, rows + 1):
                text += "".join(f"{_BORDER}<row_{row}_col_{column}>{view}" for column in range(1, columns + 1)) + "\n"
            text += ("\n" if rows else "") + f"{_BORDER}{_GLOBAL}{view}{_BORDER}"
            known = self._blocks[grid] = tuple(self._vocabulary.encode([(text, True)]))
        return known

    def prepare(self, plan: ImagePlan) -> Pixels:
        """See `Family.prepare`; the values are [tiles, 3, tile, tile]."""
        image = plan.image
        picture = PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)
        made = self._processor(images=[picture], do_image_splitting=bool(plan.settings[0]), return_tensors="pt")
        grid = (made["rows"][0][0], made["cols"][0][0])
        if grid != plan.grid:
            raise RuntimeError(
                f"a picture of {image.width}x{image.height} px was cut into {grid} tiles, planned were {plan.grid}"
            )
        return Pixels(plan, made["pixel_values"][0])

    def place(self, prompt: Prompt) -> None:
        """See `Family.place`: positions simply count up."""
        prompt.positions = torch.arange(len(prompt.token_ids))[None]
        prompt.delta = 0

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `Family.encode`: all tiles of all pictures in one batch."""
        tiles = torch.cat([one.values for one in pixels]).to(self.decoder.device, self.decoder.dtype)
        features = self._connector(self._vision(pixel_values=tiles).last_hidden_state)  # [tiles, features, hidden]
        counts = [len(one.values) for one in pixels]
        return [part.flatten(0, 1) for part in features.split(counts)]


def _fit(width: int, height: int, longest: int) -> tuple[int, int]:
    """Scale so that the longest edge is `longest` px, the other one even."""
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    return max(width, 1), max(height, 1)


def _shrink(width: int, height: int, most: int) -> tuple[int, int]:
    """Scale down, never up, so that no edge is over `most` px."""
    aspect = width / height
    if width >= height and width > most:
        width, height = most, int(most / aspect)
    elif height > width and height > most:
        height, width = most, int(most * aspect)
    return max(width, 1), max(height, 1)
