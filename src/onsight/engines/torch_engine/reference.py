"""transformers' own classes run on a checkpoint, one request at a time: what `onsight verify` compares the engine with.

Its processors import torchvision, so their parts are used: the tokenizer, the PIL image processor, and the rule that
turns a picture's placeholder into as many as it has features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from transformers import AutoTokenizer

from onsight.core.errors import StartError
from onsight.core.messages import Image, Message, Text, Video
from onsight.core.tools import ToolCall
from onsight.engines.torch_engine.families.pictures import as_picture
from onsight.engines.torch_engine.loading import Checkpoint, read_optional_json

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a prompt led to: its ids, prepared pixels, and `logits` [tokens, rows of the head], float32 on the CPU.

    `tokens`: the greedy answer, one for each row of `logits`. `decode_s`: time for all but the first of them.
    """

    prompt: list[int]
    pixels: torch.Tensor | None
    tokens: list[int]
    logits: torch.Tensor
    decode_s: float


@dataclass(frozen=True, slots=True)
class Reference:
    """A loaded reference; `read` makes the model's inputs out of the template's text and the pictures."""

    tokenizer: Any
    model: Any
    read: Callable[[str, list[PIL.Image.Image]], Inputs]

    def answer(self, messages: Sequence[Message], template: str, count: int, banned: Sequence[int]) -> Answer:
        """`count` greedy tokens without the `banned` ones, past the model's own end tokens if need be."""
        turns = [{"role": message.role, "content": [_content(part) for part in message.parts]} for message in messages]
        text = str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
        pictures = [as_picture(image) for message in messages for image in message.images]
        inputs = self.read(text, pictures)
        first, _ = self._generate(inputs, 1, banned)
        whole, made = self._generate(inputs, count, banned)
        prompt = inputs["input_ids"][0].tolist()
        tokens = made.sequences[0, len(prompt) :].tolist()
        logits = torch.cat(made.logits).float().cpu()
        return Answer(prompt, inputs.get("pixel_values"), tokens, logits, max(whole - first, 1e-9))

    def _generate(self, inputs: Inputs, count: int, banned: Sequence[int]) -> tuple[float, Any]:
        """(seconds, what `generate` returns); `logits` are raw, before anything is banned."""
        device, dtype = self.model.device, self.model.dtype
        there = {
            name: values.to(device, dtype) if values.is_floating_point() else values.to(device)
            for name, values in inputs.items()
        }
        began_s = time.perf_counter()
        with torch.inference_mode():
            made = self.model.generate(
                **there,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                suppress_tokens=list(banned) or None,
                output_logits=True,
                return_dict_in_generate=True,
            )
            made.sequences.cpu()  # waits for a GPU
        return time.perf_counter() - began_s, made


def load_reference(family: str, checkpoint: Checkpoint) -> Reference | None:
    """transformers' class for `family` with the weights of `checkpoint`; None where transformers has none.

    Raises StartError when transformers cannot load it, or leaves a tensor as it was drawn.
    """
    match family:
        case "smolvlm":
            return _smolvlm(checkpoint)
        case "qwen_vl":
            return _qwen(checkpoint)
        case "mllama":
            return _mllama(checkpoint)
        case "phi3_vision":
            return None
        case _:
            raise StartError(f"{checkpoint.folder}: no reference is known for family {family!r}, so nothing to compare")


def _smolvlm(checkpoint: Checkpoint) -> Reference:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    tokenizer, processor, model = _load(checkpoint, SmolVLMImageProcessorPil, SmolVLMForConditionalGeneration)
    length = read_optional_json(checkpoint.folder / "processor_config.json").get("image_seq_len", 169)

    def read(text: str, pictures: list[PIL.Image.Image]) -> Inputs:
        if not pictures:
            return _ids(tokenizer, text)
        made = processor(images=[pictures], return_row_col_info=True, return_tensors="pt")
        first, *rest = text.split("<image>")
        for rows, columns, piece in zip(made["rows"][0], made["cols"][0], rest, strict=True):
            first += get_image_prompt_string(
                rows, columns, length, "<fake_token_around_image>", "<image>", "<global-img>"
            )
            first += piece
        pixels = {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}
        return _ids(tokenizer, first) | pixels

    return Reference(tokenizer, model, read)


def _qwen(checkpoint: Checkpoint) -> Reference:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer, processor, model = _load(checkpoint, Qwen2VLImageProcessorPil, Qwen2_5_VLForConditionalGeneration)
    pad = "<|image_pad|>"

    def read(text: str, pictures: list[PIL.Image.Image]) -> Inputs:
        extra: Inputs = {}
        if pictures:
            made = processor(images=pictures, return_tensors="pt")
            text, *rest = text.split(pad)
            for (_, rows, columns), piece in zip(made["image_grid_thw"].tolist(), rest, strict=True):
                text += pad * (rows * columns // processor.merge_size**2) + piece
            extra = {name: made[name] for name in ("pixel_values", "image_grid_thw")}
        inputs = _ids(tokenizer, text)
        return inputs | extra | {"mm_token_type_ids": (inputs["input_ids"] == _id_of(tokenizer, pad)).int()}

    return Reference(tokenizer, model, read)


def _mllama(checkpoint: Checkpoint) -> Reference:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
    from transformers.models.mllama.modeling_mllama import MllamaForConditionalGeneration
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    tokenizer, processor, model = _load(checkpoint, MllamaImageProcessorPil, MllamaForConditionalGeneration)

    def read(text: str, pictures: list[PIL.Image.Image]) -> Inputs:
        inputs = _ids(tokenizer, text)
        if not pictures:
            return inputs
        made = processor(images=[pictures], return_tensors="pt")
        tiles = made.pop("num_tiles")
        ids = inputs["input_ids"][0].tolist()
        runs = get_cross_attention_token_mask(ids, _id_of(tokenizer, "<|image|>"))
        mask = convert_sparse_cross_attention_mask_to_dense([runs], tiles, processor.max_image_tiles, len(ids))
        return inputs | dict(made) | {"cross_attention_mask": torch.from_numpy(mask)}

    return Reference(tokenizer, model, read)


def _load(checkpoint: Checkpoint, processor_class: Any, model_class: Any) -> tuple[Any, Any, Any]:
    """(tokenizer, image processor, model) by transformers' own loaders. Raises StartError."""
    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        model, report = model_class.from_pretrained(
            folder, dtype=checkpoint.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise StartError(f"transformers itself cannot load {folder}: {' '.join(str(error).split())}") from None
    if report["missing_keys"]:
        raise StartError(f"transformers itself finds no weights for {sorted(report['missing_keys'])[0]} in {folder}")
    return tokenizer, processor, model.to(checkpoint.device).eval()


def _ids(tokenizer: Any, text: str) -> Inputs:
    made = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def _id_of(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _content(part: Text | Image | Video | ToolCall) -> dict[str, str]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            return {"type": "image"}
        case _:
            raise ValueError("the reference is asked about pictures and text alone")
