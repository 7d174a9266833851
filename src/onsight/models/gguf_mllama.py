"""Llama 3.2 Vision as Ollama wrote it: one GGUF file that no llama.cpp reads, made into a folder for the torch engine.

The layout is that of Ollama's converter (github.com/ollama/ollama, convert/convert_mllama.go and convert_llama.go): its
names of fields and tensors are undone here, its changes of numbers in `engines/torch_engine/gguf_weights.py`. What it
leaves out (how pictures are prepared, the scaling of positions) is the same in every published Llama 3.2 Vision.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants

from onsight.core.errors import StartError
from onsight.models.gguf_header import GgufHeader, read_header

ARCHITECTURE = "mllama"
_VERSION = 1
"""Of what is written into the folder; a new one has every folder written anew."""
_CONTROL = 3
"""Type of the tokens that mark turns and pictures."""
_PICTURES: Mapping[str, object] = {
    "image_processor_type": "MllamaImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_pad": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_FACTOR, _LOW, _HIGH, _ORIGINAL = 8.0, 1.0, 4.0, 8192
_SCALED_POSITIONS: Mapping[str, object] = {
    "rope_type": "llama3", "factor": _FACTOR, "low_freq_factor": _LOW, "high_freq_factor": _HIGH,
    "original_max_position_embeddings": _ORIGINAL,
}  # fmt: skip
_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How Llama 3 cuts text into words before it makes tokens; `tokenizer.ggml.pre` calls it llama-bpe."""
_TEXT_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "cross_attn_q_proj": "cross_attn.q_proj", "cross_attn_k_proj": "cross_attn.k_proj",
    "cross_attn_v_proj": "cross_attn.v_proj", "cross_attn_o_proj": "cross_attn.o_proj",
    "cross_attn_q_norm": "cross_attn.q_norm", "cross_attn_k_norm": "cross_attn.k_norm",
    "cross_attn_attn_gate": "cross_attn_attn_gate", "cross_attn_mlp_gate": "cross_attn_mlp_gate",
}  # fmt: skip
_SEEING_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2", "attn_gate": "gate_attn", "ffn_gate": "gate_ffn",
}  # fmt: skip
_PLACES = {
    "token_embd": "language_model.model.embed_tokens", "output_norm": "language_model.model.norm",
    "output": "language_model.lm_head", "mm.0": "multi_modal_projector",
    "v.class_embd": "vision_model.class_embedding", "v.patch_embd": "vision_model.patch_embedding",
    "v.pre_ln": "vision_model.layernorm_pre", "v.post_ln": "vision_model.layernorm_post",
    "v.position_embd.weight": "vision_model.gated_positional_embedding.embedding",
    "v.position_embd.gate": "vision_model.gated_positional_embedding.gate",
    "v.tile_position_embd": "vision_model.gated_positional_embedding.tile_embedding",
    "v.pre_tile_position_embd.weight": "vision_model.pre_tile_positional_embedding.embedding.weight",
    "v.pre_tile_position_embd.gate": "vision_model.pre_tile_positional_embedding.gate",
    "v.post_tile_position_embd.weight": "vision_model.post_tile_positional_embedding.embedding.weight",
    "v.post_tile_position_embd.gate": "vision_model.post_tile_positional_embedding.gate",
}  # fmt: skip
_LAYER = re.compile(r"(v\.global\.blk|v\.blk|blk)\.(\d+)\.(\w+)(\.weight|\.bias)?")
_LAYERS = {
    "blk": ("language_model.model.layers", _TEXT_PARTS),
    "v.blk": ("vision_model.transformer.layers", _SEEING_PARTS),
    "v.global.blk": ("vision_model.global_transformer.layers", _SEEING_PARTS),
}
_COMPUTED = ("rope_freqs.weight", "v.tile_position_embd.gate")
"""Not weights: the scaling of positions, and the gate of positions once more."""


def published_name(name: str) -> str | None:
    """How the published checkpoint calls the tensor `name` of Ollama's file; None for what it does without.

    A name that is not Ollama's comes back as it is.
    """
    if name in _COMPUTED:
        return None
    if name in _PLACES:
        return _PLACES[name]
    stem, dot, kind = name.rpartition(".")
    if stem in _PLACES and dot and kind in ("weight", "bias"):
        return f"{_PLACES[stem]}.{kind}"
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    kind_of_layer, number, part, ending = found.groups()
    folder, parts = _LAYERS[kind_of_layer]
    return f"{folder}.{number}.{parts[part]}{ending or ''}" if part in parts else name


def folder_of_mllama(path: Path) -> Path:
    """A folder with a link to the file `path` and all that a model's folder holds beside its weights.

    It is kept in the cache (HF_HOME) and made anew when the file has changed. Raises StartError for a file that holds
    another model, or not all of one.
    """
    state = path.stat()
    key = hashlib.sha256(f"{_VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    folder = Path(constants.HF_HOME) / "onsight" / "gguf" / key[:32]
    if (folder / "config.json").is_file():
        return folder
    header = read_header(path)
    files = {
        "tokenizer.json": _tokenizer(path, header),
        "preprocessor_config.json": _pictures(path, header),
        "config.json": _config(path, header),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as begun:
            for name, table in files.items():
                (Path(begun) / name).write_text(json.dumps(table), "utf-8")
            (Path(begun) / "model.gguf").symlink_to(path.resolve())
            folder.mkdir(exist_ok=True)
            for name in ("model.gguf", *files):  # config.json last: with it the folder is whole
                os.replace(Path(begun) / name, folder / name)
    except OSError as error:
        raise StartError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


_STARTS = ("mllama", "llama", "mllama.llama")


class _Fields:
    """The fields by their names without the architecture, before which the converter's versions put different words."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self._path, self._header = path, header

    def number(self, name: str) -> int:
        found = self._find(name)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self._missing(name)
        return found

    def fraction(self, name: str) -> float:
        found = self._find(name)
        if not isinstance(found, float):
            raise self._missing(name)
        return found

    def numbers(self, name: str) -> list[int]:
        found = self._find(name)
        if not isinstance(found, list) or not found:
            raise self._missing(name)
        return [int(item) for item in found]

    def _find(self, name: str) -> object:
        fields = self._header.fields
        return next((fields[f"{start}.{name}"] for start in _STARTS if f"{start}.{name}" in fields), None)

    def _missing(self, name: str) -> StartError:
        return StartError(
            f"{self._path} does not say {ARCHITECTURE}.{name}, so it was not written by Ollama's converter for Llama"
            " 3.2 Vision: serve meta-llama/Llama-3.2-11B-Vision-Instruct, its safetensors files, on the torch engine"
        )


def _config(path: Path, header: GgufHeader) -> Mapping[str, object]:
    get = _Fields(path, header)
    shapes = {one.name: one.shape for one in header.tensors}
    words, head = shapes.get("token_embd.weight", (0,))[0], shapes.get("output.weight", (0,))[0]
    tokens = header.items("tokenizer.ggml.tokens")
    if not head or "<|image|>" not in tokens:
        raise StartError(f"{path} holds no head for words (output.weight) or no token <|image|>: download it again")
    layers = get.numbers("vision.intermediate_layers_indices")
    width = get.number("vision.embedding_length")
    theta = get.fraction("rope.freq_base")
    scaled = _is_scaled(path, header, theta)
    text = {
        "vocab_size": head,
        "hidden_size": get.number("embedding_length"),
        "intermediate_size": get.number("feed_forward_length"),
        "num_hidden_layers": get.number("block_count"),
        "num_attention_heads": get.number("attention.head_count"),
        "num_key_value_heads": get.number("attention.head_count_kv"),
        "max_position_embeddings": get.number("context_length"),
        "rms_norm_eps": get.fraction("attention.layer_norm_rms_epsilon"),
        "cross_attention_layers": get.numbers("attention.cross_attention_layers"),
        "rope_parameters": {**(_SCALED_POSITIONS if scaled else {"rope_type": "default"}), "rope_theta": theta},
        "pad_token_id": min(words, head) - 1,  # nothing is ever padded with it
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": get.number("vision.feed_forward_length"),
        "num_hidden_layers": get.number("vision.block_count"),
        "num_global_layers": get.number("vision.global.block_count"),
        "attention_heads": get.number("vision.attention.head_count"),
        "norm_eps": get.fraction("vision.attention.layer_norm_epsilon"),
        "image_size": get.number("vision.image_size"),
        "patch_size": get.number("vision.patch_size"),
        "num_channels": get.number("vision.num_channels"),
        "max_num_tiles": get.number("vision.max_num_tiles"),
        "intermediate_layers_indices": layers,
        "vision_output_dim": width * (1 + len(layers)),
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": tokens.index("<|image|>"),
        "text_config": text,
        "vision_config": vision,
    }


def _is_scaled(path: Path, header: GgufHeader, theta: float) -> bool:
    """Whether positions are scaled as Llama 3.1's are; the file holds the factors alone, not what made them.

    Raises StartError for other factors than those of the published models.
    """
    one = next((one for one in header.tensors if one.name == "rope_freqs.weight"), None)
    if one is None:
        return False
    with path.open("rb") as file:
        file.seek(one.begins)
        found = struct.unpack(f"<{one.size // 4}f", file.read(one.size))
    for place, factor in enumerate(found):
        wave = 2 * math.pi * theta ** (place / len(found))
        kept = min(max((_ORIGINAL / wave - _LOW) / (_HIGH - _LOW), 0.0), 1.0)
        if not math.isclose(factor, 1 / ((1 - kept) / _FACTOR + kept), rel_tol=1e-3):
            raise StartError(f"{path} scales positions as no published Llama 3.2 Vision does: it cannot be read")
    return True


def heads_of(path: Path, header: GgufHeader) -> tuple[int, int, int]:
    """(query heads, heads of keys and values, the tower's heads). Raises StartError where they are not said."""
    get = _Fields(path, header)
    names = ("attention.head_count", "attention.head_count_kv", "vision.attention.head_count")
    queries, keys, seeing = (get.number(name) for name in names)
    return queries, keys, seeing


def _pictures(path: Path, header: GgufHeader) -> Mapping[str, object]:
    get = _Fields(path, header)
    side = get.number("vision.image_size")
    return {**_PICTURES, "size": {"height": side, "width": side}, "max_image_tiles": get.number("vision.max_num_tiles")}


def _tokenizer(path: Path, header: GgufHeader) -> Mapping[str, object]:
    tokens, kinds = header.items("tokenizer.ggml.tokens"), header.items("tokenizer.ggml.token_type")
    merges, cut = header.items("tokenizer.ggml.merges"), header.text("tokenizer.ggml.pre")
    if header.text("tokenizer.ggml.model") != "gpt2" or cut != "llama-bpe" or len(kinds) != len(tokens):
        raise StartError(
            f"{path} holds a tokenizer of kind {header.text('tokenizer.ggml.model')!r} with words cut as {cut!r}, not"
            " Llama 3's (gpt2, llama-bpe): it cannot be read"
        )
    added = [
        {
            "id": number, "content": token, "special": True, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL
    ]  # fmt: skip
    marks = {one["content"] for one in added}
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_alone]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {str(token): number for number, token in enumerate(tokens) if token not in marks},
            "merges": merges,
        },
    }
