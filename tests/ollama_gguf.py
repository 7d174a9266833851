"""Writes a Llama 3.2 Vision as Ollama's converter does (convert/convert_mllama.go, convert_llama.go), for tests.

Names are replaced as Go's `strings.NewReplacer` replaces them: from the left, at each place the first that fits.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Stored
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, pre_tokenizers

from onsight.engines.torch_engine.loading import read_json
from tests.tiny_models import write_mllama
from training.export_gguf import MIXTURE
from training.k_quants import kind_of_mixture, quantize

REPLACEMENTS = (
    ("lm_head", "output"), ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"),
    ("mlp.down_proj", "ffn_down"), ("mlp.up_proj", "ffn_up"), ("post_attention_layernorm", "ffn_norm"),
    ("language_model.", ""), ("gate_attn", "attn_gate"), ("gate_ffn", "ffn_gate"), ("cross_attn.", "cross_attn_"),
    ("vision_model", "v"), ("class_embedding", "class_embd"), ("patch_embedding", "patch_embd"),
    ("gated_positional_embedding.tile_embedding", "tile_position_embd"),
    ("gated_positional_embedding.embedding", "position_embd.weight"), ("gated_positional_embedding", "position_embd"),
    ("embedding.weight", "weight"), ("pre_tile_positional_embedding", "pre_tile_position_embd"),
    ("post_tile_positional_embedding", "post_tile_position_embd"), ("layernorm_pre", "pre_ln"),
    ("layernorm_post", "post_ln"), ("global_transformer.layers", "global.blk"), ("transformer.layers", "blk"),
    ("mlp.fc1", "ffn_up"), ("mlp.fc2", "ffn_down"), ("multi_modal_projector", "mm.0"),
)  # fmt: skip
ALWAYS_WHOLE = ("position_embd.weight",)
"""End the names of tensors of several dimensions that the converter never makes halves of."""
ORIGINAL_POSITIONS = 8192
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def write_plain(folder: Path, width: int = 64) -> Path:
    """A tiny model with what all published ones share: Llama 3's words, its scaled positions, CLIP's colours."""
    write_mllama(folder, width=width)
    config = read_json(folder / "config.json")
    config["text_config"]["rope_parameters"]["original_max_position_embeddings"] = ORIGINAL_POSITIONS  # type: ignore[index]
    (folder / "config.json").write_text(json.dumps(config))
    pictures = read_json(folder / "preprocessor_config.json")
    pictures["image_mean"], pictures["image_std"] = CLIP
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def published(name: str) -> str:
    """The published checkpoint's name for a tensor that transformers calls `name`."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return f"language_model.{name}" if name.startswith("lm_head") else name.removeprefix("model.")


def replaced(name: str) -> str:
    made, place = "", 0
    while place < len(name):
        old, new = next(((old, new) for old, new in REPLACEMENTS if name.startswith(old, place)), ("", ""))
        made += new if old else name[place]
        place += len(old) or 1
    return made


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head: a real part's beside its imaginary part's."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).transpose(0, 2, 1, 3).reshape(rows, width)


def rope_factors(theta: float, size: int) -> list[float]:
    """How far positions of each pair are slowed down, as Llama 3.1 does it."""
    factors = []
    for place in range(0, size, 2):
        wave = 2 * math.pi * theta ** (place / size)
        if wave < ORIGINAL_POSITIONS / 4.0:
            factors.append(1.0)
        elif wave > ORIGINAL_POSITIONS / 1.0:
            factors.append(8.0)
        else:
            smooth = (ORIGINAL_POSITIONS / wave - 1.0) / 3.0
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return factors


def write_ollama(folder: Path, out: Path, kind: str = "F32", start: str = "") -> Path:
    """The model in `folder` as the file `out`; products of the text model as `kind`, or in the mixture Q4_K_M.

    The part that sees is then in halves, as Ollama's own files have it. `start`: before fields' names.
    """
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    writer = gguf.GGUFWriter(out, "mllama")
    _write_fields(writer, text, vision, start)
    _write_tokens(writer, json.loads((folder / "tokenizer.json").read_text()))
    theta = text["rope_parameters"]["rope_theta"]
    factors = rope_factors(theta, text["hidden_size"] // text["num_attention_heads"])
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    for name, tensor in load_file(folder / "model.safetensors").items():
        new, values = replaced(published(name)), tensor.float().numpy()
        seeing = new.startswith(("v.", "mm."))
        if new.endswith(("attn_q.weight", "attn_k.weight", "attn_q_proj.weight", "attn_k_proj.weight")):
            of_text = text["num_attention_heads" if "attn_q" in new else "num_key_value_heads"]
            values = neighbours(values, vision["attention_heads"] if seeing else of_text)
        elif seeing and new.endswith(("attn_gate", "ffn_gate", "tile_position_embd.gate")):
            values = np.tanh(values)
        elif new == "v.position_embd.gate":
            writer.add_tensor("v.tile_position_embd.gate", np.tanh(values))
            values = 1 - np.tanh(values)
        stored = _stored(new, values, kind, text["num_hidden_layers"])
        writer.add_tensor(new, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _stored(name: str, values: np.ndarray, kind: str, layers: int) -> Stored:
    """How the tensor `name` is stored in a file of `kind`."""
    if kind == "F32" or values.ndim < 2 or name.endswith(ALWAYS_WHOLE):
        return Stored.F32
    if name.startswith(("v.", "mm.")):
        return Stored.F16
    if values.shape[1] % 32:
        return Stored.F32
    return kind_of_mixture(name, values.shape[1], layers, tied=False) if kind == MIXTURE else Stored[kind]


def _write_fields(writer: gguf.GGUFWriter, text: dict, vision: dict, start: str) -> None:
    begin = f"mllama.{start}"
    whole = {
        "block_count": text["num_hidden_layers"], "context_length": text["max_position_embeddings"],
        "embedding_length": text["hidden_size"], "feed_forward_length": text["intermediate_size"],
        "attention.head_count": text["num_attention_heads"], "attention.head_count_kv": text["num_key_value_heads"],
    }  # fmt: skip
    seeing = {
        "block_count": vision["num_hidden_layers"], "global.block_count": vision["num_global_layers"],
        "embedding_length": vision["hidden_size"], "feed_forward_length": vision["intermediate_size"],
        "attention.head_count": vision["attention_heads"], "image_size": vision["image_size"],
        "patch_size": vision["patch_size"], "max_num_tiles": vision["max_num_tiles"],
        "num_channels": vision["num_channels"],
    }  # fmt: skip
    for name, value in whole.items():
        writer.add_uint32(begin + name, value)
    for name, value in seeing.items():
        writer.add_uint32(f"mllama.vision.{name}", value)
    writer.add_float32(f"{begin}attention.layer_norm_rms_epsilon", text["rms_norm_eps"])
    writer.add_float32(f"{begin}rope.freq_base", text["rope_parameters"]["rope_theta"])
    writer.add_float32("mllama.vision.attention.layer_norm_epsilon", vision["norm_eps"])
    writer.add_array("mllama.attention.cross_attention_layers", text["cross_attention_layers"])
    writer.add_array("mllama.vision.intermediate_layers_indices", vision["intermediate_layers_indices"])


def _write_tokens(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    by_id = {number: token for token, number in model["vocab"].items()} | {one["id"]: one["content"] for one in added}
    marks = {one["id"] for one in added}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([by_id[number] for number in range(len(by_id))])
    writer.add_token_types([3 if number in marks else 1 for number in range(len(by_id))])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
