"""Checkpoints of published shapes with random weights: for speed, what the numbers are does not matter.

Tokenizer, chat template and picture settings are those of the tests' tiny models, with the vocabulary filled up to its
true size. The published weights are never needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from tests.engines.torch_engine.reference import MllamaReference, QwenReference, Reference, SmolVLMReference
from tests.tiny_models import write_mllama, write_qwen, write_smolvlm

Settings = dict[str, Any]
Kind = Literal["smolvlm", "qwen", "mllama"]

_SHARD_BYTES = 2 << 30
_POOL = 1 << 22
_QUIET = 0.05
"""Rows of the tiny vocabulary's own tokens are this small, so that answers are made of filler tokens alone: each is one
visible piece of text, and none ends an answer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`text` and `vision`: what config.json says beyond the tiny model. `context`: tokens that every slot has room for;
    a 1920x1080 screen and an answer fit. `screens`: (width, height) px of those whose first token is timed. `seeing`:
    about how many weights look at pictures. `pictures`: files that say how those are cut, and what they say beyond the
    tiny model's."""

    name: str
    kind: Kind
    text: Settings
    vision: Settings
    tied: bool
    context: int
    screens: tuple[tuple[int, int], ...] = ((1920, 1080),)
    seeing: int = 100_000_000
    pictures: dict[str, Settings] = field(default_factory=dict)


def _smolvlm(name: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> Shape:
    text = {
        "vocab_size": 49280, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64, "max_position_embeddings": 8192,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    return Shape(name, "smolvlm", text, vision, tied=False, context=2048)


def _qwen(name: str, text: Settings, tied: bool, context: int, screens: tuple[tuple[int, int], ...]) -> Shape:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
        "out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    more = {"rope_parameters": rope, "max_position_embeddings": 128000}
    return Shape(name, "qwen", text | more, vision, tied, context, screens, seeing=680_000_000)


_QWEN_3B = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2,
}  # fmt: skip
_QWEN_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip

_SMOLVLM_2B = replace(
    _smolvlm("SmolVLM2-2.2B", 2048, 8192, 24, 32, 32),
    vision={
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    },
    seeing=430_000_000,
    pictures={
        "config.json": {"scale_factor": 3},
        "preprocessor_config.json": {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        "processor_config.json": {"image_seq_len": 81},
    },
)  # fmt: skip
_LLAMA_11B = Shape(
    "Llama-3.2-Vision-11B",
    "mllama",
    {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        },
    },
    {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
        "attention_heads": 16, "vision_output_dim": 7680, "intermediate_layers_indices": [3, 7, 15, 23, 30],
    },
    tied=False,
    context=1024,
    seeing=900_000_000,
)  # fmt: skip

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("tiny-smolvlm", "smolvlm", {"vocab_size": 1000}, {}, tied=False, context=512, screens=((192, 108),)),
        Shape("tiny-qwen", "qwen", {"vocab_size": 1000}, {}, tied=True, context=512, screens=((192, 108),)),
        Shape("tiny-mllama", "mllama", {"vocab_size": 1000}, {}, tied=False, context=512, screens=((192, 108),)),
        _smolvlm("SmolVLM2-256M", 576, 1536, 30, 9, 3),
        _smolvlm("SmolVLM2-500M", 960, 2560, 32, 15, 5),
        _SMOLVLM_2B,
        _LLAMA_11B,
        _qwen("Qwen2.5-VL-3B", _QWEN_3B, True, 4096, ((1920, 1080),)),
        _qwen("Qwen2.5-VL-7B", _QWEN_7B, False, 12288, ((1920, 1080), (3840, 2160))),
    )
}
"""By name. The true ones are as the models' own config.json files say."""


def write_shape(shape: Shape, folder: Path) -> Path:
    """Write a checkpoint of `shape` into the new folder `folder`, weights in bfloat16 files of at most 2 GiB."""
    writers: dict[Kind, Callable[..., Path]] = {"smolvlm": write_smolvlm, "qwen": write_qwen, "mllama": write_mllama}
    writers[shape.kind](folder, true_pictures=not shape.name.startswith("tiny"))
    (folder / "model.safetensors").unlink()
    own_tokens = _fill_vocabulary(folder / "tokenizer.json", int(shape.text["vocab_size"]))
    table = json.loads((folder / "config.json").read_text())
    for part, changes in (("text_config", shape.text), ("vision_config", shape.vision)):
        table[part] = table[part] | changes
        if "num_hidden_layers" in changes:
            table[part].pop("layer_types", None)  # one entry a layer, made anew
    table |= {"tie_word_embeddings": shape.tied, "dtype": "bfloat16"}
    table["text_config"]["tie_word_embeddings"] = shape.tied
    (folder / "config.json").write_text(json.dumps(table))
    for file, changes in shape.pictures.items():
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    _save(_tensors(outline(shape, folder), own_tokens, shape.tied), folder)
    return folder


def outline(shape: Shape, folder: Path) -> nn.Module:
    """The model that config.json in `folder` describes, without memory for its weights."""
    table = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        if shape.kind == "smolvlm":
            from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
            from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

            return SmolVLMForConditionalGeneration(SmolVLMConfig.from_dict(table))
        if shape.kind == "mllama":
            from transformers.models.mllama.configuration_mllama import MllamaConfig
            from transformers.models.mllama.modeling_mllama import MllamaForConditionalGeneration

            return MllamaForConditionalGeneration(MllamaConfig.from_dict(table))
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(table))


def reference(shape: Shape, folder: Path) -> Reference:
    """transformers' own model and processing, as the tests compare ours with."""
    references: dict[Kind, Callable[[Path], Reference]] = {
        "smolvlm": SmolVLMReference, "qwen": QwenReference, "mllama": MllamaReference,
    }  # fmt: skip
    return references[shape.kind](folder)


def shortened(shape: Shape, layers: int) -> Shape:
    """`shape` with the first `layers` of its decoder alone."""
    text = shape.text | {"num_hidden_layers": layers}
    if "cross_attention_layers" in text:
        text["cross_attention_layers"] = [layer for layer in text["cross_attention_layers"] if layer < layers]
    return replace(shape, text=text)


def weights(shape: Shape) -> int:
    """About how many numbers the model has, by its shape alone; for deciding whether it fits."""
    text, hidden = shape.text, int(shape.text.get("hidden_size", 64))
    if "num_hidden_layers" not in text:
        return 1_000_000
    head = hidden // int(text["num_attention_heads"])
    attention = hidden * head * 2 * (int(text["num_attention_heads"]) + int(text["num_key_value_heads"]))
    layer = attention + 3 * hidden * int(text["intermediate_size"])
    tables = (1 if shape.tied else 2) * hidden * int(text["vocab_size"])
    return int(text["num_hidden_layers"]) * layer + tables + shape.seeing


def decode_bytes(model: nn.Module, tied: bool, item: int) -> int:
    """Bytes of weights that one decode step reads, at `item` bytes a number: the language model and its head."""
    total = 0
    for name, weight in model.named_parameters():
        spoken = "lm_head" in name or "text_model" in name or "language_model" in name
        # A table of words that is no head too is looked up, not read.
        if spoken and (tied or "embed_tokens" not in name):
            total += weight.numel() * item
    return total


def _fill_vocabulary(path: Path, size: int) -> int:
    """Give every id up to `size` a token; returns how many the tiny tokenizer had."""
    table = json.loads(path.read_text())
    words = table["model"]["vocab"] | {token["content"]: token["id"] for token in table["added_tokens"]}
    own = len(words)
    table["model"]["vocab"] = words | {f"word{number}": number for number in range(own, size)}
    path.write_text(json.dumps(table))
    return own


def _tensors(model: nn.Module, own_tokens: int, tied: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model's shape, in bfloat16, cut from one pool of normal numbers."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).bfloat16()
    place = 0
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if weight.dim() < 2:
            tensor = torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
        else:
            count = weight.numel()
            place = (place + 7919) % _POOL
            start = torch.cat([pool[place:], pool[:place]])
            flat = start[:count] if count <= _POOL else start.repeat(-(-count // _POOL))[:count]
            tensor = flat.view(weight.shape) * weight[0].numel() ** -0.5
        if name.endswith("lm_head.weight" if not tied else "embed_tokens.weight"):
            tensor[:own_tokens] *= _QUIET
        yield name, tensor.contiguous()


def _save(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """As several files with the index that transformers looks for."""
    shards: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}

    def write() -> None:
        file = f"model-{len(set(shards.values())):05d}.safetensors"
        save_file(waiting, folder / file, metadata={"format": "pt"})
        shards.update(dict.fromkeys(waiting, file))
        waiting.clear()

    for name, tensor in tensors:
        waiting[name] = tensor
        if sum(one.nbytes for one in waiting.values()) > _SHARD_BYTES:
            write()
    if waiting:
        write()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
