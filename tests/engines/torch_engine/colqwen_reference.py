"""ColQwen2.5 written down plainly over transformers' own Qwen2_5_VLModel, padding on the left as colpali_engine does.

It shares no code with the family under test. It was compared with colpali_engine 0.3.18 by `tests/colpali_vectors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from onsight.core.messages import Image

PAGE = "<|im_start|>user\n<|vision_start|>{}<|vision_end|>Describe the image.<|im_end|><|endoftext|>"


class ColQwenModel(Qwen2_5_VLModel):
    """With its projection, and parts named as colpali_engine's current class names them, so that peft can adapt it."""

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        self.custom_text_proj = torch.nn.Linear(config.text_config.hidden_size, 128)
        self.post_init()


class ColQwenReference:
    """A checkpoint of layout "current", run with one forward for all that it is given at once."""

    def __init__(self, folder: Path) -> None:
        self.model = ColQwenModel(Qwen2_5_VLConfig.from_pretrained(folder)).eval()
        self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def queries(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """[tokens, 128] of each."""
        return self._run(self.tokenize([text + "<|endoftext|>" * 10 for text in texts]))

    def pages(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """[tokens, 128] of each."""
        made = self.process(images)
        texts = [PAGE.format("<|image_pad|>" * (int(grid.prod()) // 4)) for grid in made["image_grid_thw"]]
        inputs = self.tokenize(texts)
        kinds = (inputs["input_ids"] == self.model.config.image_token_id).int()
        return self._run(inputs | made | {"mm_token_type_ids": kinds})

    def process(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """`pixel_values` of all patches and `image_grid_thw`."""
        opened = [PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels) for image in images]
        return dict(self.images(images=opened, return_tensors="pt"))

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        made = self.tokenizer(list(texts), padding="longest", return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    def _run(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        mask = inputs["attention_mask"].bool()
        with torch.inference_mode():
            hidden = self.model(**inputs, use_cache=False).last_hidden_state
            vectors = self.model.custom_text_proj(hidden)
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        return [vectors[row][kept] for row, kept in enumerate(mask)]
