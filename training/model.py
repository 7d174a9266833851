"""Peek's architecture, and how the bundled folder is written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.draw import IMAGE_SIDE
from training.tokenizer import save_tokenizer, write_json
from training.words import KNOWN_WORDS

BUNDLED = Path(__file__).resolve().parent.parent / "src" / "onsight" / "bundled" / "peek"
PATCH = 16
GRID = IMAGE_SIDE // PATCH
IMAGE_TOKENS = (GRID // 2) ** 2

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "SmolVLMImageProcessor",
    "processor_class": "SmolVLMProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": False,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": IMAGE_SIDE},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": IMAGE_SIDE},
}


def peek_config(tokenizer: PreTrainedTokenizerBase) -> SmolVLMConfig:
    """The configuration: every width a multiple of 128."""
    eos = tokenizer.eos_token_id
    vision = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
    )


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> SmolVLMForConditionalGeneration:
    """A model with random weights."""
    torch.manual_seed(seed)
    config = peek_config(tokenizer)
    config._attn_implementation = "eager"  # on a CPU its backward pass is a quarter faster than the fused one's
    return SmolVLMForConditionalGeneration(config)


def load_tokenizer(folder: Path = BUNDLED) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder``."""
    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path = BUNDLED) -> SmolVLMForConditionalGeneration:
    """The model of ``folder``, in float32."""
    return SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def save_weights(model: SmolVLMForConditionalGeneration, folder: Path) -> None:
    """Write the weights as bfloat16 safetensors, tied ones once, with the configuration files beside them."""
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict()
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "bfloat16"
        part.pop("_name_or_path", None)
    config["architectures"] = ["SmolVLMForConditionalGeneration"]
    write_json(folder / "config.json", config)


def write_untrained(folder: Path = BUNDLED) -> None:
    """Write the whole folder anew, with a new tokenizer and random weights. Trained weights no longer fit then."""
    save_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    model = new_model(tokenizer)
    save_weights(model, folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_json(folder / "processor_config.json", {"image_seq_len": IMAGE_TOKENS, "processor_class": "SmolVLMProcessor"})
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    generation.save_pretrained(folder)


@torch.no_grad()
def align_words(model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a known word's other tokens ("Save", " save") the embedding that " Save" got from stage 1.

    Each way of writing keeps its own mean, so that the model can tell them apart.
    """
    embedding = model.get_input_embeddings().weight
    lone = {word: tokenizer.encode(f" {word}", add_special_tokens=False) for word in KNOWN_WORDS}
    named = embedding[[lone[word][0] for word in KNOWN_WORDS]].clone()
    for write in (str, lambda word: f" {word.lower()}"):
        ids = [tokenizer.encode(write(word), add_special_tokens=False) for word in KNOWN_WORDS]
        whole = [row for row, tokens in enumerate(ids) if len(tokens) == 1]
        rows = [ids[row][0] for row in whole]
        embedding[rows] = named[whole] - named.mean(0) + embedding[rows].mean(0)


def warm_start(model: SmolVLMForConditionalGeneration, folder: Path = BUNDLED) -> None:
    """Load the stored weights of ``folder`` into ``model``."""
    missing, unexpected = model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"weights of another architecture: missing {missing}, unexpected {unexpected}")
    model.tie_weights()


if __name__ == "__main__":
    write_untrained()
