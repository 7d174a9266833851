"""What the published Phi-3.5-vision code answers, written down once more, plainly: whole sequences, no cache, loops.

Built from transformers' CLIP and Phi-3; nothing of the engine's own port is used here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy
import PIL.Image
import PIL.ImageOps
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM

from onsight.core.messages import Image, Message
from tests.engines.torch_engine.reference import Expected, Reference
from tests.tiny_phi3 import CLIP, TOWER, VISION

MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def hd_picture(picture: PIL.Image.Image, num_crops: int, side: int = 336) -> PIL.Image.Image:
    """The picture scaled and padded with white to whole crops."""
    transposed = picture.width < picture.height
    if transposed:
        picture = picture.transpose(PIL.Image.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    scale = 1
    while scale * numpy.ceil(scale / ratio) <= num_crops:
        scale += 1
    scale -= 1
    width = int(scale * side)
    height = int(width / ratio)
    picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
    missing = int(numpy.ceil(height / side) * side) - height
    above = int(missing / 2)
    picture = PIL.ImageOps.expand(picture, border=(0, above, 0, missing - above), fill=(255, 255, 255))
    return picture.transpose(PIL.Image.Transpose.TRANSPOSE) if transposed else picture


def views(picture: PIL.Image.Image, num_crops: int, side: int = 336) -> tuple[torch.Tensor, int, int]:
    """([1 + crops, 3, side, side], rows, columns): the whole picture, then crops from left to right, top to bottom."""
    padded = numpy.asarray(hd_picture(picture, num_crops, side), dtype=numpy.float32) / numpy.float32(255)
    values = torch.stack(
        [
            (torch.tensor(padded[:, :, channel]) - torch.tensor(MEAN[channel])) / torch.tensor(DEVIATION[channel])
            for channel in range(3)
        ]
    )
    rows, columns = values.shape[1] // side, values.shape[2] // side
    made = [torch.nn.functional.interpolate(values[None], size=(side, side), mode="bicubic")[0]]
    for row in range(rows):
        for column in range(columns):
            made.append(values[:, row * side : (row + 1) * side, column * side : (column + 1) * side])
    return torch.stack(made), rows, columns


def token_count(rows: int, columns: int, half: int = 12) -> int:
    """The published formula; `half` is how many merged patches a crop's edge has."""
    return (rows * columns + 1) * half * half + 1 + (rows + 1) * half


class Phi3Reference(Reference):
    media = ("<|image|>",)
    coarser_among_several = True

    def __init__(self, folder: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        table = json.loads((folder / "config.json").read_text())
        other = ("architectures", "model_type", "auto_map", "embd_layer", "img_processor", "_attn_implementation")
        inner = {name: value for name, value in table.items() if name not in (*other, "torch_dtype")}
        inner["rope_scaling"] = {**inner["rope_scaling"], "type": "longrope"}
        self.lm = Phi3ForCausalLM(Phi3Config(**inner)).eval()
        clip = CLIPVisionConfig(**(CLIP | table["img_processor"]["vision_config"]))
        self.crop, self.half = int(clip.image_size), int(clip.image_size // clip.patch_size // 2)
        self.clip = CLIPVisionModel(clip).eval()
        tensors = load_file(folder / "model.safetensors")
        self.lm.load_state_dict({name: one for name, one in tensors.items() if not name.startswith(VISION)})
        self.clip.load_state_dict({n.removeprefix(TOWER): t for n, t in tensors.items() if n.startswith(TOWER)})
        self.vision = {name.removeprefix(VISION): one for name, one in tensors.items() if name.startswith(VISION)}

    @property
    def ends(self) -> list[int]:
        return [2, *(self.tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|endoftext|>"))]

    def prompt(self, messages: Sequence[Message]) -> str:
        text, number = "", 0
        for message in messages:
            text += f"<|{message.role}|>\n"
            for part in message.parts:
                if isinstance(part, Image):
                    number += 1
                    text += f"<|image_{number}|>\n"
                else:
                    text += part.text
            text += "<|end|>\n"
        return text + "<|assistant|>\n"

    def see(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        pixels, rows, columns = views(_pil(image), 16, self.crop)
        return pixels, [-1] * token_count(rows, columns, self.half)

    def features(self, image: Image, num_crops: int) -> torch.Tensor:
        """[tokens, hidden]"""
        pixels, rows, columns = views(_pil(image), num_crops, 28)
        patches = self.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].unflatten(1, (4, 4))
        lines = []
        for y in range(rows * 2):
            for x in range(columns * 2):
                crop = patches[1 + y // 2 * columns + x // 2]
                lines.append(self.merged(crop, y % 2, x % 2))
            lines.append(self.vision["sub_GN"].flatten())
        lines.append(self.vision["glb_GN"].flatten())
        for y in range(2):
            lines += [self.merged(patches[0], y, 0), self.merged(patches[0], y, 1), self.vision["sub_GN"].flatten()]
        hidden = torch.stack(lines) @ self.vision["img_projection.0.weight"].T + self.vision["img_projection.0.bias"]
        hidden = torch.nn.functional.gelu(hidden)
        return hidden @ self.vision["img_projection.2.weight"].T + self.vision["img_projection.2.bias"]

    @staticmethod
    def merged(crop: torch.Tensor, y: int, x: int) -> torch.Tensor:
        """Four neighbouring patches of [4, 4, dim] as one vector."""
        return torch.cat(
            [crop[2 * y, 2 * x], crop[2 * y, 2 * x + 1], crop[2 * y + 1, 2 * x], crop[2 * y + 1, 2 * x + 1]]
        )

    def read(self, messages: Sequence[Message]) -> tuple[list[int], torch.Tensor]:
        """Token ids, a picture's as -number, and their embeddings [1, tokens, hidden]."""
        images = [image for message in messages for image in message.images]
        pieces = re.split(r"<\|image_\d+\|>", self.prompt(messages))
        ids = list(self.tokenizer(pieces[0]).input_ids)
        parts = [self.lm.model.embed_tokens(torch.tensor(ids))]
        for number, (image, piece) in enumerate(zip(images, pieces[1:], strict=True), 1):
            most = {"low": 1, "high": 16, "auto": 16 if len(images) == 1 else 4}[image.options.detail]
            features = self.features(image, most)
            after = list(self.tokenizer(piece).input_ids)
            ids += [-number] * len(features) + after
            parts += [features, self.lm.model.embed_tokens(torch.tensor(after))]
        return ids, torch.cat(parts)[None]

    def generate(self, messages: Sequence[Message], max_tokens: int) -> Expected:
        """Greedy, reading the whole sequence again for every token."""
        banned = self.tokenizer.convert_tokens_to_ids("<|image|>")
        with torch.inference_mode():
            prompt, embeds = self.read(messages)
            tokens: list[int] = []
            seen = []
            while len(tokens) < max_tokens and not set(tokens) & set(self.ends):
                scores = self.lm(inputs_embeds=embeds, use_cache=False).logits[0, -1]
                seen.append(scores)
                allowed = scores.clone()
                allowed[banned] = allowed[len(self.tokenizer) :] = -torch.inf
                tokens.append(int(allowed.argmax()))
                embeds = torch.cat([embeds, self.lm.model.embed_tokens(torch.tensor([[tokens[-1]]]))], dim=1)
        return Expected(prompt, tokens, torch.stack(seen))


def _pil(image: Image) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", (image.width, image.height), image.pixels)
