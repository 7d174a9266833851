"""ColQwen2.5: Qwen2.5-VL whose every token, of a query or of a page, is projected to one short vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from onsight.core.embedding import NO_IMAGE, Embedding, ImageSpan
from onsight.core.errors import ContextTooLong
from onsight.core.messages import Image, Text
from onsight.engines.torch_engine.adapter import merge_adapter, read_adapter
from onsight.engines.torch_engine.families.qwen_images import IMAGE, QwenImages, encode
from onsight.engines.torch_engine.families.qwen_vl import read_config
from onsight.engines.torch_engine.length_groups import BATCH_TOKENS, grouped
from onsight.engines.torch_engine.loading import Checkpoint, check_folder, load_weights
from onsight.engines.torch_engine.memory import require_room
from onsight.engines.torch_engine.prompt import ImagePlan, Prompt, write
from onsight.engines.torch_engine.turns import Piece, TemplateText
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.hub import adapter_base, locate_base

DIMS = 128
"""Numbers in a vector; the checkpoints' configurations do not say it."""
_MOST_PIXELS = 768 * 28 * 28
"""What the models were trained with: at most 768 image tokens a page."""
_BEFORE_PAGE = TemplateText("<|im_start|>user\n<|vision_start|>")
_AFTER_PAGE = TemplateText("<|vision_end|>Describe the image.<|im_end|><|endoftext|>")
_AFTER_QUERY = TemplateText("<|endoftext|>" * 10)
"""Places without meaning of their own, which the model was trained to use for what a query does not say."""
_MOVED = (("model.visual.", "visual."), ("model.language_model.", "language_model."), ("model.", "language_model."))
"""Earlier beginnings of tensors' names, and ours."""


class ColQwen:
    """Queries and pages as vectors; every vector has length 1.

    `dims`: numbers in a vector. `merge`: how many of the tower's patches an image token has on each side.
    `context_tokens`: most tokens of an input, as the checkpoint was made for; its engine may lower it. `weight_bytes`:
    what the model takes in memory. `read` and `look` may run on several threads at once, `embed` on the model's own.
    Pages keep their shape; for `detail`, `min_pixels` and `max_pixels` see `QwenImages`. A page is seen in at most 768
    tokens unless its options say otherwise.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the model, which may be an adapter: its base is then looked for as any model is. Raises StartError."""
        own = base = checkpoint.folder
        base_name = adapter_base(own)
        adapter = None
        if base_name is not None:
            adapter, base = read_adapter(own), locate_base(own, base_name)
        check_folder(base)
        require_room(base, checkpoint.device, checkpoint.dtype)
        source = Checkpoint(base, checkpoint.device, checkpoint.dtype, checkpoint.progress)
        config = read_config(source)
        with no_init_weights(), torch.device(source.device):
            model = Qwen2_5_VLModel._from_config(config, dtype=source.dtype, attn_implementation="sdpa").eval()
            projection = nn.Linear(config.text_config.hidden_size, DIMS, dtype=source.dtype)
        parts = nn.ModuleDict({
            "language_model": model.language_model, "visual": model.visual, "custom_text_proj": projection
        })  # fmt: skip
        load_weights(parts, source, _rename)
        if adapter is not None:
            merge_adapter(parts, adapter, _rename)
        self._language, self._vision, self._projection = parts.values()
        vocabulary = Vocabulary(_holding(own, base, "tokenizer.json"))
        self._vocabulary = vocabulary
        self.image_token_id = vocabulary.require(IMAGE)
        settings = _holding(own, base, "preprocessor_config.json", "processor_config.json")
        self.context_tokens = int(config.text_config.max_position_embeddings)
        self._images = QwenImages(
            settings, self.image_token_id, self.context_tokens, most_pixels=_MOST_PIXELS, param="input"
        )
        self.device, self.dtype = source.device, source.dtype
        self.merge, self.dims = self._images.merge, DIMS
        self.weight_bytes = sum(weight.nbytes for weight in parts.parameters())

    def n_patches(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of vectors that a page of `width` x `height` px takes, without any option.

        Raises InvalidRequest for a size that no page can have.
        """
        return self._images.merged_patches(width, height)

    def page_bytes(self, page: Image) -> int:
        """What `look` will keep of a page, worked out from its size alone. Raises InvalidRequest or ContextTooLong."""
        count = self._images.tokens(page)
        self._check(count)
        return count * self._images.token_bytes

    def read(self, one: Text | Image) -> Prompt:
        """The tokens and positions of a query or a page. Raises InvalidRequest or ContextTooLong.

        What a query says is plain text, `<|image_pad|>` included.
        """
        pieces: tuple[Piece, ...] = (_BEFORE_PAGE, one, _AFTER_PAGE) if isinstance(one, Image) else (one, _AFTER_QUERY)
        if isinstance(one, Image):
            self._check(self._images.tokens(one))  # before lists of that length are made
        plans = [self._images.plan(one)] if isinstance(one, Image) else []
        prompt = write(pieces, self._vocabulary, plans, {self.image_token_id})
        self._check(len(prompt.token_ids))
        self._images.place(prompt)
        return prompt

    def _check(self, count: int) -> None:
        if count > self.context_tokens:
            raise ContextTooLong(
                f"the input takes {count} tokens, but this model reads at most {self.context_tokens}: shorten a query,"
                " lower a page's max_pixels",
                param="input",
            )

    def look(self, prompt: Prompt) -> None:
        """Resize and normalise a page."""
        for span in prompt.spans:
            assert isinstance(span.plan, ImagePlan)  # `read` plans nothing else
            span.pixels = self._images.prepare(span.plan)

    def embed(self, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS) -> list[Embedding]:
        """One embedding for each prompt that `look` has seen, in their order.

        Inputs of like length share a forward of at most `batch_tokens`, padding included, or of one longer input.
        Which ones share it changes no vector by more than rounding.
        """
        made: dict[int, Embedding] = {}
        for group in grouped([len(prompt.token_ids) for prompt in prompts], batch_tokens):
            chosen = [prompts[index] for index in group]
            with torch.inference_mode():
                vectors = self._forward(chosen).cpu()
            for index, prompt, rows in zip(group, chosen, vectors, strict=True):
                made[index] = _embedding(prompt, rows, self.merge)
        return [made[index] for index in range(len(prompts))]

    def _forward(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """[prompts, longest, DIMS], float32; past a prompt's own length rows mean nothing.

        Padding stands behind: attention is causal, so what comes later is seen by nothing that counts.
        """
        longest = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        positions = torch.zeros(3, len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.token_ids)] = torch.tensor(prompt.token_ids)
            positions[:, row, : len(prompt.token_ids)] = prompt.positions
        embeds = self._language.get_submodule("embed_tokens")(ids.to(self.device))  # [prompts, longest, hidden]
        pages = [(row, span) for row, prompt in enumerate(prompts) for span in prompt.spans]
        pixels = [span.pixels for _, span in pages if span.pixels is not None]
        patches = [one.values.to(self.device, self.dtype) for one in pixels]
        features = encode(self._vision, patches, [one.plan for one in pixels]) if pixels else []
        for (row, span), seen in zip(pages, features, strict=True):
            embeds[row, span.start : span.stop] = seen
        hidden = self._language(
            inputs_embeds=embeds, position_ids=positions.to(self.device), use_cache=False
        ).last_hidden_state
        vectors: torch.Tensor = self._projection(hidden)
        return nn.functional.normalize(vectors.float(), dim=-1)


def _embedding(prompt: Prompt, rows: torch.Tensor, merge: int) -> Embedding:
    """`rows`: [at least the prompt's tokens, DIMS] on the CPU. `merge`: see `ColQwen`."""
    count = len(prompt.token_ids)
    spans = [ImageSpan(span.start, span.stop - span.start, span.plan.grid[1] // merge) for span in prompt.spans]
    return Embedding(rows[:count].numpy().tobytes(), count, DIMS, spans[0] if spans else NO_IMAGE)


def _holding(own: Path, base: Path, *names: str) -> Path:
    """The adapter's own folder where it has one of these files, else its base's."""
    return own if any((own / name).exists() for name in names) else base


def _rename(name: str) -> str | None:
    """Our name of a stored tensor.

    The halves of the model were called `model.` and `visual.` before transformers 4.52, then `model.language_model.`
    and `model.visual.`, and `language_model.` and `visual.` since colpali_engine 0.3.11; the projection was saved
    under the adapter's own prefix at times. The output head, where it is stored, has nothing to say here.
    """
    name = name.removeprefix("base_model.model.")
    if name == "lm_head.weight":
        return None
    for stored, ours in _MOVED:
        if name.startswith(stored):
            return ours + name.removeprefix(stored)
    return name
