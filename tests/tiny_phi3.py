"""Writes a tiny random Phi-3.5-vision checkpoint with names, configuration, tokenizer and template as Microsoft's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tiny_models import CORPUS

TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{- '<|assistant|>\n' -}}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>")
CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7, "hidden_act": "quick_gelu",
}  # fmt: skip
VISION = "model.vision_embed_tokens."
TOWER = VISION + "img_processor.vision_model."


def decoder_settings(vocabulary: int, context: int, short_tokens: int) -> dict[str, object]:
    """The decoder's half of config.json."""
    return {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context,
        "original_max_position_embeddings": short_tokens, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "type": "su", "short_factor": [1.0 + 0.05 * place for place in range(8)],
            "long_factor": [1.5 + 0.6 * place for place in range(8)],
        },
        "sliding_window": 262144, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
        "tie_word_embeddings": False,
    }  # fmt: skip


def write_phi3(
    folder: Path, *, seed: int = 0, context: int = 1024, short_tokens: int = 512, true_pictures: bool = False
) -> Path:
    """About 0.2M parameters: crops of 28 px that become 4 features each. LongRoPE turns after `short_tokens` tokens.

    `true_pictures`: crops of 336 px with 144 features, as in Microsoft's.
    """
    clip = CLIP | ({"image_size": 336, "patch_size": 14} if true_pictures else {})
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    settings = decoder_settings(tokenizer.get_vocab_size() + 9, context, short_tokens)
    config = settings | {
        "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "torch_dtype": "bfloat16",
        "_attn_implementation": "flash_attention_2",
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"},
        "embd_layer": {
            "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
            "use_hd_transform": True, "with_learnable_separator": True,
        },
        "img_processor": {
            "image_dim_out": 16, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
            "num_img_tokens": 144, "vision_config": clip,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_tensors(settings, clip, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    image = {
        "auto_map": {"AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor"}, "num_crops": 4,
        "image_processor_type": "Phi3VImageProcessor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "num_img_tokens": 144,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    tokenizer.save(str(folder / "tokenizer.json"))
    table = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    return folder


def _tensors(settings: dict[str, object], clip: dict[str, object], seed: int) -> dict[str, torch.Tensor]:
    """Every tensor under its original name, drawn wide enough for answers to depend on pictures."""
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel
    from transformers.models.phi3.configuration_phi3 import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM

    plain = {name: value for name, value in settings.items() if name != "rope_scaling"}
    hidden, merged = 64, 4 * 16
    shapes = {name: weight.shape for name, weight in Phi3ForCausalLM(Phi3Config(**plain)).state_dict().items()}
    shapes |= {
        TOWER + name: weight.shape for name, weight in CLIPVisionModel(CLIPVisionConfig(**clip)).state_dict().items()
    }
    shapes |= {
        VISION + "glb_GN": (1, 1, merged), VISION + "sub_GN": (1, 1, 1, merged),
        VISION + "img_projection.0.weight": (hidden, merged), VISION + "img_projection.0.bias": (hidden,),
        VISION + "img_projection.2.weight": (hidden, hidden), VISION + "img_projection.2.bias": (hidden,),
    }  # fmt: skip
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(tuple(shape), generator=dice)
        if name.endswith(("_GN", "class_embedding")) or ("embed" in name.removeprefix(VISION) and len(shape) == 2):
            tensors[name] = noise * 0.5
        elif len(shape) > 1:
            tensors[name] = noise * (1.6 / noise[0].numel() ** 0.5)
        else:
            tensors[name] = noise * 0.1 + (0.0 if name.endswith("bias") else 1.0)
    # Single bytes are hardly ever said: random ones are no UTF-8, and how such a run is shown is a matter of taste.
    tensors["lm_head.weight"][3:259] *= 0.05
    return tensors


def _tokenizer() -> Tokenizer:
    """Sentencepiece's BPE as Llama has it: a blank before every piece of text, unknown characters as bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in sorted(learned["vocab"], key=learned["vocab"].get) if token not in tokens]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer
