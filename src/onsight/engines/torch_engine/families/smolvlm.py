"""SmolVLM, SmolVLM2 and Peek: SigLIP tiles, pixel shuffle, a Llama decoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

from onsight.core.geometry import Size
from onsight.core.messages import Image
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.families.frames import fit_longest
from onsight.engines.torch_engine.families.key_values import KeyValueShape
from onsight.engines.torch_engine.families.pictures import as_picture, refuse_pixel_bounds
from onsight.engines.torch_engine.families.product import store_in_blocks
from onsight.engines.torch_engine.families.smolvlm_video import SmolVLMVideo
from onsight.engines.torch_engine.loading import Checkpoint, empty_model, image_settings, load_weights, read_json
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Prompt, VideoPlan
from onsight.engines.torch_engine.tool_syntax import PLAIN
from onsight.engines.torch_engine.vocabulary import Vocabulary

_IMAGE = "<image>"
_BORDER = "<fake_token_around_image>"
_GLOBAL = "<global-img>"
_LARGEST_EDGE_PX = 4096
"""transformers never scales a picture past this."""
_AT_ONCE = 32
"""Most tiles in one pass: a long video's frames together would take gigabytes."""


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
        model = empty_model(SmolVLMForConditionalGeneration, config, checkpoint)
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
        view = f"{_BORDER}{_GLOBAL}{_IMAGE * self._features_per_tile}{_BORDER}"
        self.watcher = SmolVLMVideo(folder, vocabulary, self.image_token_id, view)
        others = vocabulary.those_of(_BORDER, _GLOBAL, self.watcher.words.text)
        self.media_token_ids = others | {self.image_token_id}
        self.end_token_ids = vocabulary.those_of("<end_of_utterance>")
        self._blocks: dict[tuple[int, int], tuple[int, ...]] = {}

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """See `Family.plan`."""
        options = image.options
        refuse_pixel_bounds(options, "tiles")
        split = bool(self._processor.do_image_splitting) and options.detail != "low"
        grid = self._grid(image) if split else (0, 0)
        settings = (int(split), self._tile, int(self._processor.size["longest_edge"]))
        key = hashlib.sha256(f"smolvlm {settings} {image.digest}".encode()).hexdigest()
        # Tiles are cut from a picture that is stretched to fill them.
        seen = Size(max(grid[1], 1) * self._tile, max(grid[0], 1) * self._tile)
        return ImagePlan(image, key, self._block(grid), grid, settings, seen)

    @property
    def _tile(self) -> int:
        return int(self._processor.max_image_size["longest_edge"])

    def _grid(self, image: Image) -> tuple[int, int]:
        """(rows, columns) of tiles; (0, 0) for one view. Follows the image processor's own two resizes."""
        longest = int(self._processor.size["longest_edge"])
        width, height = fit_longest(image.width, image.height, longest)
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
        picture = as_picture(image)
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
        """See `Family.encode`: tiles of pictures and frames of videos alike, some at a time."""
        tiles = torch.cat([self._tiles(one) for one in pixels]).to(self.decoder.dtype)
        made = [
            self._connector(self._vision(pixel_values=some).last_hidden_state) for some in torch.split(tiles, _AT_ONCE)
        ]
        counts = [len(one.values) for one in pixels]
        return [part.flatten(0, 1) for part in torch.split(torch.cat(made), counts)]  # [tiles x features, hidden] each

    def _tiles(self, pixels: Pixels) -> torch.Tensor:
        """Normalised, on the device: [tiles, 3, tile, tile]."""
        device = self.decoder.device
        if isinstance(pixels.plan, VideoPlan):
            return self.watcher.normalise(pixels.values, device)
        return pixels.values.to(device)


def _shrink(width: int, height: int, most: int) -> tuple[int, int]:
    """Scale down, never up, so that no edge is over `most` px."""
    aspect = width / height
    if width >= height and width > most:
        width, height = most, int(most / aspect)
    elif height > width and height > most:
        height, width = most, int(most * aspect)
    return max(width, 1), max(height, 1)
