"""What transformers itself answers: its own processing, as far as that goes without torchvision, and `generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import PIL.Image
import torch
from transformers import AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    SmolVLMProcessor,
    get_image_prompt_string,
)
from transformers.video_utils import VideoMetadata

from onsight.core.messages import Image, Message, Text, Video


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
        template = self.video_template if any(message.videos for message in messages) else None
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, chat_template=template
        )
        assert isinstance(text, str)
        return text

    media: tuple[str, ...]
    model: Any
    video_template: str | None = None
    """What the processor follows instead of the checkpoint's template when there is a video."""
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
    video_template = DEFAULT_CHAT_TEMPLATE

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
        """Tiles of pictures and frames of videos in their order, which is all that the model's class asks for."""
        text = self.full_prompt(messages)
        tiles = [self._look(part) for message in messages for part in message.parts if not isinstance(part, Text)]
        inputs = dict(self.tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False))
        return inputs | {"pixel_values": torch.cat(tiles)[None]} if tiles else inputs

    def full_prompt(self, messages: Sequence[Message]) -> str:
        """Expanded by the processor's own functions."""
        media = [part for message in messages for part in message.parts if not isinstance(part, Text)]
        pictures = (self._picture_text(part) for part in media if isinstance(part, Image))
        videos = (self._video_text(part) for part in media if isinstance(part, Video))
        return _expand(self.prompt(messages), {"<image>": pictures, "<video>": videos})

    def _picture_text(self, image: Image) -> str:
        made = self.look([image])
        return self.block(made["rows"][0][0], made["cols"][0][0])

    def _video_text(self, video: Video) -> str:
        processor = SimpleNamespace(
            image_seq_len=self.features_per_tile,
            image_token="<image>",
            fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
        )
        inputs = {"pixel_values": torch.zeros(1, len(video.timestamps), 1), "video_metadata": [metadata(video)]}
        return SmolVLMProcessor.replace_video_token(processor, inputs, 0)

    def _look(self, part: Image | Video) -> torch.Tensor:
        """[tiles, 3, 32, 32]. Of a video each frame, scaled to a longest edge of 96 px and then to the tile."""
        if isinstance(part, Image):
            return self.look([part])["pixel_values"][0]
        longest = max(part.width, part.height)
        width, height = (96 * side // longest for side in (part.width, part.height))
        frames = resized_frames(film_frames(part), width + width % 2, height + height % 2, "lanczos")
        return (resized_frames(frames, 32, 32, "lanczos").float() / 255 - 0.5) / 0.5


class QwenReference(Reference):
    """With Qwen2_5_VLProcessor's rule: as many placeholders as merged patches."""

    media = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
        self.model.model.get_rope_index = partial(_positions, self.model.config.vision_config.tokens_per_second)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        made = self.processor(images=[_pil(image)], return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        return made["pixel_values"], [self.tokenizer.convert_tokens_to_ids("<|image_pad|>")] * (rows * columns // 4)

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        images = [image for message in messages for image in message.images]
        videos = [video for message in messages for video in message.videos]
        extra: dict[str, torch.Tensor] = {}
        if images:
            made = self.processor(images=[_pil(image) for image in images], return_tensors="pt")
            extra = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        if videos:
            looks = [self.look(video) for video in videos]
            extra["pixel_values_videos"] = torch.cat([patches for patches, _ in looks])
            extra["video_grid_thw"] = torch.tensor([grid for _, grid in looks])
            extra["second_per_grid_ts"] = torch.tensor([2 / metadata(video).sampled_fps for video in videos])
        counts = {
            f"<|{name}_pad|>": iter(
                [f"<|{name}_pad|>" * (grid.prod() // 4) for grid in extra.get(f"{name}_grid_thw", [])]
            )
            for name in ("image", "video")
        }
        text = _expand(self.prompt(messages), counts)
        inputs = dict(self.tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False))
        kinds = torch.zeros_like(inputs["input_ids"], dtype=torch.int32)
        for kind, name in enumerate(counts, 1):
            kinds[inputs["input_ids"] == self.tokenizer.convert_tokens_to_ids(name)] = kind
        return inputs | extra | {"mm_token_type_ids": kinds}

    def look(self, video: Video) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Patches and their (time, rows, columns), as the video processor makes them, but each by its own indices."""
        frames = film_frames(video)
        frames = torch.cat([frames, frames[-1:]]) if len(frames) % 2 else frames
        most = max(min(28 * 28 * 16, int(80 * 28 * 28 * 0.9) * 2 // len(video.timestamps)), int(28 * 28 * 4 * 1.05))
        height, width = smart_resize(video.height, video.width, 28, 28 * 28 * 4, most)
        values = resized_frames(frames, width, height, "bicubic").permute(0, 2, 3, 1).numpy()
        mean, deviation = numpy.array(OPENAI_CLIP_MEAN), numpy.array(OPENAI_CLIP_STD)
        values = ((values / 255 - mean) / deviation).astype(numpy.float32)
        grid = (len(frames) // 2, height // 14, width // 14)
        patches = [
            values[2 * time : 2 * time + 2, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14].transpose(3, 0, 1, 2).flatten()
            for time in range(grid[0])
            for top in range(0, grid[1], 2)
            for left in range(0, grid[2], 2)
            for y in (top, top + 1)
            for x in (left, left + 1)
        ]
        return torch.from_numpy(numpy.stack(patches)), grid


def _positions(
    tokens_per_second: int,
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    second_per_grid_ts: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Qwen's own rule, in place of `get_rope_index` of transformers 5.3 and later: what comes next begins after the
    greatest position so far (docs/decisions/0023).

    One row, patches merged two by two.
    """
    grids = {1: iter([] if image_grid_thw is None else image_grid_thw.tolist())}
    grids[2] = iter([] if video_grid_thw is None else video_grid_thw.tolist())
    seconds = iter([] if second_per_grid_ts is None else second_per_grid_ts.tolist())
    made = torch.zeros(3, 0, dtype=torch.int64)
    for kind, group in groupby(mm_token_type_ids[0].tolist()):
        begin = int(made.max()) + 1 if made.numel() else 0
        count = len(list(group))
        if kind == 0:
            made = torch.cat([made, torch.arange(count).expand(3, -1) + begin], dim=1)
            continue
        times, rows, columns = next(grids[kind])
        step = tokens_per_second * next(seconds) if kind == 2 else 1
        axes = (torch.arange(times) * step).long(), torch.arange(rows // 2), torch.arange(columns // 2)
        cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        assert cells.shape[1] == count
        made = torch.cat([made, cells + begin], dim=1)
    return made[:, None], made.max().reshape(1, 1) + 1 - input_ids.shape[1]


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


def _content(part: Text | Image | Video) -> dict[str, str]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image():
            return {"type": "image"}
        case Video():
            return {"type": "video"}


def film_frames(video: Video) -> torch.Tensor:
    """[frames, 3, height, width], 8 bits, laid out as transformers has them after decoding."""
    frames = numpy.frombuffer(video.pixels, numpy.uint8).reshape(-1, video.height, video.width, 3)
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).contiguous()


def resized_frames(frames: torch.Tensor, width: int, height: int, mode: str) -> torch.Tensor:
    """What torchvision's `resize` makes of 8-bit frames on a CPU: this very call, all frames at once."""
    return torch.nn.functional.interpolate(frames, size=[height, width], mode=mode, antialias=True)


def metadata(video: Video) -> VideoMetadata:
    """What a video loader of transformers would say of it, with its frames counted in milliseconds."""
    total, indices = round(video.duration_s * 1000), [round(second * 1000) for second in video.timestamps]
    return VideoMetadata(total, 1000.0, video.width, video.height, video.duration_s, frames_indices=indices)


def _expand(text: str, placeholders: dict[str, Iterator[str]]) -> str:
    """Each placeholder replaced by the next of its kind."""
    pattern = "|".join(re.escape(placeholder) for placeholder in placeholders)
    return re.sub(pattern, lambda match: next(placeholders[match[0]]), text)


def _pil(image: Image) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)
