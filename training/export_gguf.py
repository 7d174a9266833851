"""Write a SmolVLM folder (Peek, or any of its architecture) as the two files that llama.cpp reads: model and mmproj.

python -m training.export_gguf OUT [--folder MODEL] [--kind Q8_0]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from training.k_quants import kind_of_mixture, quantize
from training.model import BUNDLED

TEXT_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VISION_LAYER = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
VISION = {
    "vision_model.embeddings.patch_embedding": "v.patch_embd",
    "vision_model.embeddings.position_embedding": "v.position_embd",
    "vision_model.post_layernorm": "v.post_ln",
    "connector.modality_projection.proj": "mm.model.fc",
}

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'].startswith('<__media_') %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{{ message['content'] }}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's, for llama.cpp, whose templates see a picture as a marker in the text; before it there is no space."""


MIXTURE = "Q4_K_M"
KINDS = ("F32", "Q8_0", MIXTURE)
"""Number formats of the text model's products."""

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, MIXTURE: gguf.LlamaFileType.MOSTLY_Q4_K_M,
}  # fmt: skip


def export_gguf(folder: Path, out: Path, name: str, kind: str = "F32") -> tuple[Path, Path]:
    """Write `out`/NAME.gguf and `out`/mmproj-NAME.gguf; both paths. In "F32" nothing is lost.

    Any other of `KINDS` is for the text model's products and tables; the part that sees is then in half floats, as is
    usual. Raises ValueError for a tensor that has no place in them.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    tensors = {key.removeprefix("model."): value for file in files for key, value in file.items()}
    text = {key: value for key, value in tensors.items() if key.startswith(("text_model.", "lm_head."))}
    vision = {key: value for key, value in tensors.items() if key not in text}
    model, mmproj = out / f"{name}.gguf", out / f"mmproj-{name}.gguf"
    _write_vision(mmproj, folder, config, vision, name, "F32" if kind == "F32" else "F16")
    # Under its name only once all is there: who finds the model takes both for whole.
    part = model.with_suffix(".part")
    _write_text(part, folder, config, text, name, kind)
    part.replace(model)
    return model, mmproj


def _write_text(
    path: Path, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], name: str, kind: str
) -> None:
    text = config["text_config"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_rope_dimension_count(text["head_dim"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    _add_tokenizer(writer, folder, text)
    for key, value in tensors.items():
        if key.endswith("q_proj.weight"):
            value = _permute(value, heads)
        elif key.endswith("k_proj.weight"):
            value = _permute(value, kv_heads)
        place, columns, tied = _text_name(key), value.shape[-1], "lm_head.weight" not in tensors
        mixed = kind == MIXTURE and _is_product(place, value)
        stored = kind_of_mixture(place, columns, text["num_hidden_layers"], tied).name if mixed else kind
        _add_tensor(writer, place, value, stored)
    _finish(writer)


def _write_vision(
    path: Path, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], name: str, kind: str
) -> None:
    vision, pictures = config["vision_config"], json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("idefics3")
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(pictures["image_mean"])
    writer.add_vision_image_std(pictures["image_std"])
    writer.add_vision_projector_scale_factor(config["scale_factor"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_preproc_image_size(pictures["size"]["longest_edge"])
    for key, value in tensors.items():
        _add_tensor(writer, _vision_name(key), value, kind)
    _finish(writer)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, text: dict[str, Any]) -> None:
    """SmolLM's byte-level BPE; special tokens are marked as such."""
    table = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    special = {token["id"]: token["content"] for token in table["added_tokens"] if token["special"]}
    tokens = {place: token for token, place in table["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens.get(place, f"[unused{place}]") for place in range(text["vocab_size"])])
    writer.add_token_types([_kind(place, tokens, special) for place in range(text["vocab_size"])])
    writer.add_token_merges([" ".join(pair) for pair in table["model"]["merges"]])
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_pad_token_id(text["pad_token_id"])
    writer.add_add_bos_token(False)  # the template writes it
    writer.add_chat_template(CHAT_TEMPLATE)


def _kind(place: int, tokens: dict[int, str], special: dict[int, str]) -> gguf.TokenType:
    if place in special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.NORMAL if place in tokens else gguf.TokenType.UNUSED


def _permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """From transformers' order of rotated halves to llama.cpp's order of rotated pairs: [heads x dim, hidden]."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _text_name(key: str) -> str:
    known = {
        "text_model.embed_tokens.weight": "token_embd.weight",
        "text_model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    return known.get(key) or _layer_name(key, "text_model.layers.", "blk", TEXT_LAYER)


def _vision_name(key: str) -> str:
    owner, _, kind = key.rpartition(".")
    if owner in VISION:
        return f"{VISION[owner]}.{kind}"
    return _layer_name(key, "vision_model.encoder.layers.", "v.blk", VISION_LAYER)


def _layer_name(key: str, before: str, block: str, names: dict[str, str]) -> str:
    """`before`NUMBER.PART.weight as `block`.NUMBER.NAME.weight."""
    number, _, rest = key.removeprefix(before).partition(".")
    part, _, kind = rest.rpartition(".")
    if not key.startswith(before) or part not in names:
        raise ValueError(f"tensor {key} has no place in a GGUF file of this kind")
    return f"{block}.{number}.{names[part]}.{kind}"


def _add_tensor(writer: gguf.GGUFWriter, name: str, value: torch.Tensor, kind: str) -> None:
    """Vectors, and positions, which are added, stay as they are."""
    numbers = np.ascontiguousarray(value.to(torch.float32).numpy())
    stored = gguf.GGMLQuantizationType[kind if _is_product(name, value) else "F32"]
    writer.add_tensor(name, quantize(numbers, stored), raw_dtype=stored)


def _is_product(name: str, value: torch.Tensor) -> bool:
    return value.dim() == 2 and name != "v.position_embd.weight" and value.shape[1] % 32 == 0


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Run the export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--folder", type=Path, default=BUNDLED, help="model folder")
    parser.add_argument("--kind", choices=KINDS, default="F32", help="number format of the text model's products")
    arguments = parser.parse_args()
    for path in export_gguf(arguments.folder, arguments.out, arguments.folder.name, arguments.kind):
        print(path)


if __name__ == "__main__":
    main()
