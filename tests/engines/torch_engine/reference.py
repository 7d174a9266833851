"""What transformers itself answers: its own processing, as far as that goes without torchvision, and `generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoTokenizer
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from onsight.core.messages import Image, Message, Text


@dataclass(frozen=True)
class Expected:
    """Token ids of prompt and answer, and the raw logits [tokens, vocabulary] that each answer token came from."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor

    @property
    def logprobs(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, dim=-1)


class Reference:
    """A checkpoint run by transformers alone, one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def generate(self, messages: Sequence[Message], max_tokens: int) -> Expected:
        """Greedy; media tokens are suppressed, as the engine does."""
        inputs = self.inputs(messages)
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                suppress_tokens=self.suppressed() or None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        count = inputs["input_ids"].shape[1]
        tokens = made.sequences[0, count:].tolist()
        return Expected(inputs["input_ids"][0].tolist(), tokens, torch.cat(made.logits))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The chat template's text, a placeholder for each picture."""
        turns = [{"role": message.role, "content": [_content(part) for part in message.parts]} for message in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    media: tuple[str, ...]
    model: Any
    coarser_among_several = False
    """Whether a picture is seen otherwise when its request brings others too."""

    def suppressed(self) -> list[int]:
        """Media tokens that the output head has rows for."""
        return [self.tokenizer.convert_tokens_to_ids(token) for token in self.media]

    @property
    def ends(self) -> list[int]:
        return list(self.model.generation_config.eos_token_id)

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        """What the encoder is given for a picture that comes alone, and the ids that stand for it in a prompt."""
        raise NotImplementedError


class SmolVLMReference(Reference):
    """With SmolVLMProcessor's own expansion of a picture's placeholder."""

    media = ("<image>", "<fake_token_around_image>", "<global-img>")

    def __init__(self, folder: Path, *, split: bool = True) -> None:
        super().__init__(folder)
        from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

        self.model = SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = SmolVLMImageProcessorPil.from_pretrained(folder)
        self.split = split

        self.features_per_tile = int(json.loads((folder / "processor_config.json").read_text())["image_seq_len"])

    def look(self, images: Sequence[Image]) -> dict[str, Any]:
        return dict(
            self.processor(
                images=[[_pil(image) for image in images]],
                do_image_splitting=self.split,
                return_row_col_info=True,
                return_tensors="pt",
            )
        )

    def block(self, rows: int, columns: int) -> str:
        return str(
            get_image_prompt_string(
                rows, columns, self.features_per_tile, "<fake_token_around_image>", "<image>", "<global-img>"
            )
        )

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        made = self.look([image])
        text = self.block(made["rows"][0][0], made["cols"][0][0])
        return made["pixel_values"][0], self.tokenizer(text, add_special_tokens=False).input_ids

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        images = [image for message in messages for image in message.images]
        text = self.prompt(messages)
        if not images:
            return dict(
                self.tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
            )
        made = self.look(images)
        full, *rest = text.split("<image>")
        for rows, columns, piece in zip(made["rows"][0], made["cols"][0], rest, strict=True):
            full += self.block(rows, columns) + piece
        inputs = dict(self.tokenizer(full, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False))
        return inputs | {"pixel_values": made["pixel_values"], "pixel_attention_mask": made["pixel_attention_mask"]}


class QwenReference(Reference):
    """With Qwen2_5_VLProcessor's rule: as many placeholders as merged patches."""

    media = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        made = self.processor(images=[_pil(image)], return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        return made["pixel_values"], [self.tokenizer.convert_tokens_to_ids("<|image_pad|>")] * (rows * columns // 4)

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        images = [image for message in messages for image in message.images]
        text = self.prompt(messages)
        extra: dict[str, torch.Tensor] = {}
        if images:
            made = self.processor(images=[_pil(image) for image in images], return_tensors="pt")
            first, *rest = text.split("<|image_pad|>")
            text = first
            for grid, piece in zip(made["image_grid_thw"].tolist(), rest, strict=True):
                text += "<|image_pad|>" * (grid[1] * grid[2] // 4) + piece
            extra = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        inputs = dict(self.tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False))
        pad = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return inputs | extra | {"mm_token_type_ids": (inputs["input_ids"] == pad).int()}


class MllamaReference(Reference):
    """With MllamaProcessor's own cross-attention mask; its output head has no row for the image token."""

    media = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from transformers.models.mllama.modeling_mllama import MllamaForConditionalGeneration

        self.model = MllamaForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = MllamaImageProcessorPil.from_pretrained(folder)

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        made = self.processor(images=[[_pil(image)]], return_tensors="pt")
        return made["pixel_values"][0, 0], [self.tokenizer.convert_tokens_to_ids("<|image|>")]

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        images = [image for message in messages for image in message.images]
        inputs = dict(self.tokenizer(self.prompt(messages), return_tensors="pt", add_special_tokens=False))
        inputs.pop("token_type_ids", None)
        if not images:
            return inputs
        made = self.processor(images=[[_pil(image) for image in images]], return_tensors="pt")
        tiles = made.pop("num_tiles")
        ids = inputs["input_ids"][0].tolist()
        runs = get_cross_attention_token_mask(ids, self.tokenizer.convert_tokens_to_ids("<|image|>"))
        mask = convert_sparse_cross_attention_mask_to_dense([runs], tiles, 4, len(ids))
        return inputs | dict(made) | {"cross_attention_mask": torch.from_numpy(mask)}


def _content(part: Text | Image) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part.text}


def _pil(image: Image) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)
