"""Leaf's architecture, its tokenizer, and how its bundled folder is written and read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from training.lexicon import ASKING_WORDS, WORDS
from training.pages import CELL, MOST_PIXELS
from training.tokenizer import write_json, write_tokenizer
from training.words import made_up_word

LEAF = Path(__file__).resolve().parent.parent / "src" / "onsight" / "bundled" / "leaf"
DIMS = 128
PATCH, MERGE = 14, 2
LEAST_PIXELS = 16 * CELL * CELL
VOCABULARY_SIZE = 2048
END, START, STOP, IMAGE, SEEN, UNSEEN, VIDEO = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<|video_pad|>",
)  # fmt: skip
SPECIAL_TOKENS = (END, START, STOP, SEEN, UNSEEN, IMAGE, VIDEO)
BEFORE_PAGE, AFTER_PAGE = f"{START}user\n{SEEN}", f"{UNSEEN}Describe the image.{STOP}{END}"
AFTER_QUERY = END * 10

# CLIP's, as for every Qwen2.5-VL.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": LEAST_PIXELS,
    "max_pixels": MOST_PIXELS,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
    "image_mean": list(MEAN),
    "image_std": list(DEVIATION),
}


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE of lower-case text; every word of the lexicon is one token, wherever it stands in a query."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    # With a blank before every piece of text, a query's first word is the same token as any other.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(1)
    known = [*WORDS, *ASKING_WORDS, "user", "describe", "image"] * 400
    tokenizer.train_from_iterator([*known, *(made_up_word(rng) for _ in range(8000))], trainer)
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Train the tokenizer and write its files into ``folder``."""
    named = {"bos_token": START, "eos_token": STOP, "pad_token": END, "unk_token": END}
    settings = {"processor_class": "Qwen2_5_VLProcessor", "model_max_length": 1024, "add_prefix_space": True}
    write_tokenizer(folder, train_tokenizer(), SPECIAL_TOKENS, named, settings)


def leaf_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """The configuration of the bundled model."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": ids[START],
        "eos_token_id": ids[STOP],
        "pad_token_id": ids[END],
    }
    vision = {
        "depth": 5,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_heads": 6,
        "out_hidden_size": 192,
        "window_size": 112,
        "fullatt_block_indexes": [2, 4],
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[SEEN],
        vision_end_token_id=ids[UNSEEN],
    )


def new_leaf(tokenizer: Tokenizer, seed: int = 0) -> nn.ModuleDict:
    """The model with random weights, its parts named as colpali_engine stores them."""
    torch.manual_seed(seed)
    config = leaf_config(tokenizer)
    model = Qwen2_5_VLModel._from_config(config, attn_implementation="sdpa")
    config.vision_config._attn_implementation = _BY_LENGTH
    model.visual.patch_embed = PatchProduct(model.visual.patch_embed.proj)
    projection = nn.Linear(config.text_config.hidden_size, DIMS)
    return nn.ModuleDict(
        {"language_model": model.language_model, "visual": model.visual, "custom_text_proj": projection}
    )


class PatchProduct(nn.Module):
    """The tower's first layer as one product: a picture is a film of two equal frames, so that their weights add up."""

    def __init__(self, proj: nn.Conv3d):
        super().__init__()
        self.proj = proj

    def forward(self, pixels: Tensor) -> Tensor:
        """(patches, width) of one frame's ``pixels`` (patches, 3 * 14 * 14)."""
        return functional.linear(pixels, self.proj.weight.sum(2).flatten(1))


_BY_LENGTH = "flash_by_length"
"""transformers hands all windows at once only to an attention whose name has "flash" in it."""


def _attend_by_length(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention inside each of the pieces of ``cu_seq_lens_q``, those of the same length in one call.

    ``query``, ``key``, ``value``: (1, heads, patches, head). A call for each window, as transformers does without
    this, takes longer than the attention itself; and on a CPU the backward pass of the fused one takes twice as long.
    """
    borders = settings["cu_seq_lens_q"].tolist()
    pieces: dict[int, list[int]] = {}
    for start, stop in pairwise(borders):
        pieces.setdefault(stop - start, []).append(start)
    made = torch.empty_like(query)
    for length, starts in pieces.items():
        rows = (
            torch.tensor(starts, device=query.device)[:, None] + torch.arange(length, device=query.device)
        ).flatten()
        cut = [t[0, :, rows].unflatten(1, (len(starts), length)).transpose(0, 1) for t in (query, key, value)]
        weights = (cut[0] * settings["scaling"] @ cut[1].transpose(-1, -2)).softmax(-1)
        seen = weights.to(cut[2].dtype) @ cut[2]
        made[0, :, rows] = seen.transpose(0, 1).flatten(1, 2)
    return made.transpose(1, 2), None


AttentionInterface.register(_BY_LENGTH, _attend_by_length)


def load_tokenizer(folder: Path = LEAF) -> Tokenizer:
    """The tokenizer of ``folder``."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def save_weights(model: nn.ModuleDict, folder: Path = LEAF) -> None:
    """Write the weights as float16 safetensors, and config.json beside them."""
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = leaf_config(load_tokenizer(folder)).to_dict()
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float16"
        part.pop("_name_or_path", None)
    config["architectures"] = ["ColQwen2_5"]
    write_json(folder / "config.json", config)


def warm_start(model: nn.ModuleDict, folder: Path = LEAF) -> None:
    """Load the stored weights of ``folder`` into ``model``."""
    model.load_state_dict(load_file(str(folder / "model.safetensors")))


def write_untrained(folder: Path = LEAF) -> None:
    """Write the whole folder anew, with a new tokenizer and random weights. Trained weights no longer fit then."""
    save_tokenizer(folder)
    save_weights(new_leaf(load_tokenizer(folder)), folder)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def to_cells(image: Image.Image) -> Image.Image:
    """The picture that the image processor makes of ``image``, before normalising: whole cells, bicubic."""
    height, width = smart_resize(image.height, image.width, CELL, LEAST_PIXELS, MOST_PIXELS)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def to_patches(image: Image.Image) -> np.ndarray:
    """(patches, 3 * 14 * 14) uint8 of a picture of whole cells; the four patches of a cell stand together."""
    pixels = np.asarray(image)
    rows, columns = image.height // CELL, image.width // CELL
    cut = pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(rows * columns * MERGE**2, 3 * PATCH**2)


def see(model: nn.ModuleDict, patches: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    """(the tower's patches (P, width), image tokens (P / 4, width)) of all pages' uint8 ``patches`` one after another.

    ``grids``: (pages, 2), rows and columns of patches.
    """
    mean, deviation = (patches.new_tensor(v, dtype=torch.float32)[:, None] * 255 for v in (MEAN, DEVIATION))
    pixels = (patches.view(-1, 3, PATCH**2).float() - mean) / deviation
    visual = model["visual"]
    times = torch.cat([grids.new_ones(len(grids), 1), grids], 1)
    index, borders = get_vision_window_index(times, MERGE, visual.window_size, PATCH)
    made = visual(pixels.flatten(1), grid_thw=times, window_index=index, cu_window_seqlens=borders)
    back = torch.argsort(index)
    return made.last_hidden_state.view(len(back), MERGE**2, -1)[back].flatten(0, 1), made.pooler_output


def embed(model: nn.ModuleDict, embeds: Tensor, positions: Tensor) -> Tensor:
    """(inputs, longest, DIMS) vectors of length 1 for ``embeds`` (inputs, longest, width), padded behind."""
    hidden = model["language_model"](inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    return functional.normalize(model["custom_text_proj"](hidden).float(), dim=-1)


def embed_queries(model: nn.ModuleDict, ids: Tensor) -> Tensor:
    """(queries, longest, DIMS) for ``ids`` (queries, longest), padded behind."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
    return embed(model, model["language_model"].embed_tokens(ids), positions)


class PagePrompt:
    """What stands before and behind a page's image tokens, and where all of it is."""

    def __init__(self, tokenizer: Tokenizer):
        self.before, self.after = (
            torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids) for text in (BEFORE_PAGE, AFTER_PAGE)
        )

    def positions(self, rows: int, columns: int) -> Tensor:
        """(3, tokens): time, row and column of every token of a page of so many rows and columns of image tokens."""
        start = len(self.before)
        grid = torch.meshgrid(
            torch.zeros(1, dtype=torch.int64), torch.arange(rows), torch.arange(columns), indexing="ij"
        )
        after = torch.arange(len(self.after)) + start + max(rows, columns)
        ends = [torch.arange(start).expand(3, -1), after.expand(3, -1)]
        return torch.cat([ends[0], torch.stack(grid).flatten(1) + start, ends[1]], 1)

    def embed(self, model: nn.ModuleDict, tokens: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
        """((pages, longest, DIMS), (pages, longest) whether there is a token) for image ``tokens`` of all pages."""
        words = model["language_model"].embed_tokens
        before, after = words(self.before.to(tokens.device)), words(self.after.to(tokens.device))
        shapes = (grids // MERGE).tolist()
        parts = tokens.split([rows * columns for rows, columns in shapes])
        whole = [torch.cat([before, part.to(before.dtype), after]) for part in parts]
        embeds = nn.utils.rnn.pad_sequence(whole, batch_first=True)
        places = [self.positions(*shape).T for shape in shapes]
        positions = nn.utils.rnn.pad_sequence(places, batch_first=True).permute(2, 0, 1).to(tokens.device)
        present = torch.arange(embeds.shape[1]) < torch.tensor([len(one) for one in whole])[:, None]
        return embed(model, embeds, positions), present.to(tokens.device)


def query_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of queries, the places behind them among these."""
    return [tokenizer.encode(text + AFTER_QUERY, add_special_tokens=False).ids for text in texts]


if __name__ == "__main__":
    write_untrained()
