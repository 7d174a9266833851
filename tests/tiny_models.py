"""Writes tiny random checkpoints with all that a real one has: config, weights, tokenizer, template, image settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from onsight.core.messages import DEFAULT_IMAGE_OPTIONS, Image, ImageOptions, Video

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)  # fmt: skip
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
MLLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MLLAMA_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|image|>",
)  # fmt: skip
CORPUS = (
    "Where is the red button? What colour is the circle, and what do you see in this picture?",
    "The picture shows a blue square to the left of a green triangle. Read the screen. Describe the screen.",
    "User: Assistant: System: user assistant system You are a helpful assistant.",
    '{"action": "click", "x": 1, "y": 2, "label": "true", "items": [null, false, true]}',
    "\n\n\n",
)


def write_smolvlm(
    folder: Path,
    *,
    split: bool = True,
    seed: int = 0,
    context: int = 1024,
    tensors: dict[str, torch.Tensor] | None = None,
    true_pictures: bool = False,
) -> Path:
    """A SmolVLM of about 0.2M parameters: tiles of 32 px, 4 features each. `tensors` are stored besides its own.

    `true_pictures`: it cuts pictures as SmolVLM2-256M does, and only its layers are tiny; so with the writers below.
    """
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMForConditionalGeneration

    tokenizer = _tokenizer(SMOLVLM_SPECIALS)
    ids = {token: tokenizer.token_to_id(token) for token in SMOLVLM_SPECIALS}
    end, pad = ids["<end_of_utterance>"], ids["<|endoftext|>"]
    text = {
        "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": context,
        "bos_token_id": ids["<|im_start|>"], "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 512 if true_pictures else 32, "patch_size": 16 if true_pictures else 8,
    }  # fmt: skip
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=4 if true_pictures else 2,
        image_token_id=ids["<image>"],
        pad_token_id=pad,
    )
    model = SmolVLMForConditionalGeneration(config)
    _save(model, folder, seed, [end], tensors)
    _save_tokenizer(tokenizer, folder, SMOLVLM_TEMPLATE, "<end_of_utterance>", SMOLVLM_SPECIALS)
    settings = {
        "image_processor_type": "SmolVLMImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 1,
        "size": {"longest_edge": 2048 if true_pictures else 96},
        "max_image_size": {"longest_edge": 512 if true_pictures else 32}, "do_image_splitting": split,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "do_pad": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 64 if true_pictures else 4})
    )
    return folder


def write_qwen(
    folder: Path, *, seed: int = 0, context: int = 1024, true_pictures: bool = False, words: Sequence[str] = ()
) -> Path:
    """A Qwen2.5-VL of about 0.2M parameters: patches of 14 px, merged two by two, windows of 4 by 4 patches.

    `words` are tokens of their own that are not special, like the real one's `<tool_call>`.
    """
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    tokenizer = _tokenizer(QWEN_SPECIALS)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    ids = {token: tokenizer.token_to_id(token) for token in QWEN_SPECIALS}
    text = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    _save(Qwen2_5_VLForConditionalGeneration(config), folder, seed, ends, None)
    _save_tokenizer(tokenizer, folder, QWEN_TEMPLATE, "<|im_end|>", QWEN_SPECIALS)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56,
        "max_pixels": 12_845_056 if true_pictures else 28 * 28 * 64,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    film = {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16}, "max_video_tokens": 80}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(film))
    return folder


def write_mllama(
    folder: Path, *, seed: int = 1, context: int = 1024, true_pictures: bool = False, width: int = 64
) -> Path:
    """A Llama 3.2 Vision of about 0.3M parameters: tiles of 32 px, 17 places each, two cross-attention layers of four.

    As in the real one the output head has no row for the image token, the last of the vocabulary.
    """
    from transformers.models.mllama.configuration_mllama import MllamaConfig
    from transformers.models.mllama.modeling_mllama import MllamaForConditionalGeneration

    tokenizer = _tokenizer(MLLAMA_SPECIALS)
    ids = {token: tokenizer.token_to_id(token) for token in MLLAMA_SPECIALS}
    ends = [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]]
    side = 560 if true_pictures else 32
    text = {
        "vocab_size": ids["<|image|>"], "hidden_size": width, "intermediate_size": width * 3 // 2,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context,
        "cross_attention_layers": [1, 3],
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "high_freq_factor": 4.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 64,
        },
        "bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": ends, "pad_token_id": ids["<|end_of_text|>"],
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": side, "patch_size": 14 if true_pictures else 8, "vision_output_dim": 96,
        "intermediate_layers_indices": [0, 1],
    }  # fmt: skip
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=ids["<|image|>"])
    _save(MllamaForConditionalGeneration(config), folder, seed, ends, None)
    _save_tokenizer(tokenizer, folder, MLLAMA_TEMPLATE, "<|eot_id|>", MLLAMA_SPECIALS)
    settings = {
        "image_processor_type": "MllamaImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 2,
        "size": {"height": side, "width": side}, "max_image_tiles": 4, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_pad": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def draw(
    colour: tuple[int, int, int], width: int = 64, height: int = 48, options: ImageOptions = DEFAULT_IMAGE_OPTIONS
) -> Image:
    """A white ground and a filled shape of `colour`: solid colours, because noise leaves answers unchanged."""
    row = [(255, 255, 255)] * (width // 4) + [colour] * (width - width // 4)
    pixels = b"".join(
        bytes(channel for pixel in (row if y > height // 4 else row[::-1]) for channel in pixel) for y in range(height)
    )
    return Image.of(pixels, width, height, options)


def film(
    colour: tuple[int, int, int], frames: int = 4, width: int = 64, height: int = 48, every_s: float = 0.5
) -> Video:
    """A square of `colour` that moves to the right, on white; a frame each `every_s` seconds."""
    pixels = b""
    for place in range(frames):
        left = place * width // (2 * frames)
        row = [(255, 255, 255)] * left + [colour] * (width // 2) + [(255, 255, 255)] * (width - width // 2 - left)
        for y in range(height):
            pixels += b"".join(map(bytes, row)) if y > height // 3 else b"\xff" * width * 3
    timestamps = tuple(place * every_s for place in range(frames))
    digest = hashlib.sha256(pixels + repr((frames, width, every_s)).encode()).hexdigest()
    return Video(pixels, width, height, timestamps, frames * every_s, digest)


def _tokenizer(specials: Sequence[str]) -> Tokenizer:
    """Byte-level BPE with single digits, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def _save(
    model: torch.nn.Module, folder: Path, seed: int, ends: list[int], tensors: dict[str, torch.Tensor] | None
) -> None:
    """Save `model` with weights drawn wider than the usual start, so that what it says depends on what it sees."""
    from safetensors.torch import save_file

    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                spread = 0.5 if "embed" in name else 1.6 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=dice) * spread)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=dice) * 0.1)
            elif "gate" in name:
                weight.fill_(0.8)  # mllama's start closed, and then no picture would matter
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
    save_file(state | (tensors or {}), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, template: str, end: str, specials: Sequence[str]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    start = next(token for token in ("<|im_start|>", "<|begin_of_text|>") if token in specials)
    pad = next(token for token in ("<|endoftext|>", "<|end_of_text|>") if token in specials)
    table = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start, "eos_token": end, "pad_token": pad,
        "chat_template": template, "clean_up_tokenization_spaces": False, "additional_special_tokens": list(specials),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
