"""How near an answer is to its reference: tiny models of every family, engines that keep their logits, one comparison.

A new kind of model gets a column in the table by an entry in `FAMILIES` (a chat model: the matrix in
`torch_engine/test_parity.py` then runs for it) or in `OTHER_COLUMNS` (anything else: its own tests call `note`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Message
from onsight.engines.torch_engine import TorchEngine
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.prompt import Prompt, lay_out
from onsight.engines.torch_engine.sampling import Choice, Sampler
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.torch_engine.phi3_reference import Phi3Reference
from tests.engines.torch_engine.reference import MllamaReference, QwenReference, Reference, SmolVLMReference
from tests.tiny_models import write_mllama, write_qwen, write_smolvlm
from tests.tiny_phi3 import write_phi3

TOLERANCE = 1e-4
"""Most that any logit may differ from the reference's, in float32."""

CHECKS = (
    "one picture",
    "several pictures",
    "several sizes",
    "text only",
    "several turns",
    "system turn",
    "joining in flight",
    "prompt read in parts",
    "second question, picture first",
    "second question, text first",
    "picture turned by EXIF",
    "batch mates",
    "pixels of 30 sizes",
)
"""What is checked of every chat family. "batch mates" compares our own answer alone with our own among others."""


@dataclass(frozen=True)
class Kind:
    """A family as these tests know it. `title`: the column's head. `source`: what its answers are held against."""

    title: str
    source: str
    write: Callable[..., Path]
    reference: Callable[[Path], Reference]


FAMILIES: Mapping[str, Kind] = {
    "smolvlm": Kind(
        "SmolVLM, SmolVLM2", "transformers' SmolVLMForConditionalGeneration", write_smolvlm, SmolVLMReference
    ),
    "qwen": Kind(
        "Qwen2.5-VL, Holo1.5", "transformers' Qwen2_5_VLForConditionalGeneration", write_qwen, QwenReference
    ),
    "mllama": Kind(
        "Llama 3.2 Vision", "transformers' MllamaForConditionalGeneration", write_mllama, MllamaReference
    ),
    "phi3": Kind(
        "Phi-3.5-vision",
        "a second, plain writing-down of the published code over transformers' CLIP and Phi-3"
        " (tests/engines/torch_engine/phi3_reference.py)",
        write_phi3,
        Phi3Reference,
    ),
}  # fmt: skip

_VIDEO_CHECKS = (
    "videos, joining in flight",
    "videos, second question",
    "videos, several turns",
    "videos, read in parts",
)
OTHER_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "SmolVLM2, videos": _VIDEO_CHECKS,
    "Qwen2.5-VL, videos": _VIDEO_CHECKS,
    "ColQwen2.5": ("queries and pages", "batch mates"),
}
"""Columns beside those of `FAMILIES`: title -> the checks that their own tests note."""


def columns() -> dict[str, tuple[str, ...]]:
    """Every column of the table with its checks."""
    return {kind.title: CHECKS for kind in FAMILIES.values()} | dict(OTHER_COLUMNS)


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint of a family."""

    name: str
    kind: Kind
    folder: Path

    @cached_property
    def reference(self) -> Reference:
        return self.kind.reference(self.folder)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.folder)

    @cached_property
    def family(self) -> Family:
        """The engine's own half, without the engine around it."""
        checkpoint = Checkpoint(self.folder, torch.device("cpu"), torch.float32)
        return load_family(find_card("tiny", self.folder).family, checkpoint, self.vocabulary)

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.folder, self.family.image_text, self.family.chat_template)

    def lay_out(self, *messages: Message) -> Prompt:
        """The prompt as the engine makes it."""
        images = [image for message in messages for image in message.images]
        plans = [self.family.plan(image, len(images)) for image in images]
        return lay_out(messages, self.template, self.vocabulary, plans, {self.family.image_token_id})


def note(record_property: Callable[[str, Any], None], column: str, check: str, difference: float) -> None:
    """Hold the largest difference against the bound, and leave it for the table (see `fidelity_table`)."""
    assert check in columns()[column]
    assert difference <= TOLERANCE
    record_property("fidelity", (column, check, difference))


@dataclass
class Seen:
    """What the sampler was shown of one request: its prompt's ids, and for each answer token the logits before it."""

    sequence: Sequence
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)

    @property
    def logits(self) -> torch.Tensor:
        """[tokens, rows of the output head]"""
        return torch.stack(self.rows)


class WatchedEngine(TorchEngine):
    """The engine itself, but its sampler keeps what it is shown."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.watch = Watch()

    def _load(self) -> Any:
        loaded = super()._load()
        loaded.loop._sampler = self.watch.over(loaded.loop._sampler)
        return loaded


class Watch:
    """Finds what was seen of a request by its `Sampling`, which goes through the engine as it is."""

    def __init__(self) -> None:
        self._seen: dict[int, list[Seen]] = {}
        self._sampler: Sampler | None = None

    def over(self, sampler: Sampler) -> Watch:
        self._sampler = sampler
        return self

    def choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Choice]:
        """As `Sampler.choose`."""
        assert self._sampler is not None
        choices = self._sampler.choose(logits, sequences)
        for row, sequence, choice in zip(logits, sequences, choices, strict=True):
            seen = self._of(sequence)
            seen.tokens.append(choice.token_id)
            seen.rows.append(row.clone())
        return choices

    def _of(self, sequence: Sequence) -> Seen:
        known = self._seen.setdefault(id(sequence.sampling), [])
        for seen in known:
            if seen.sequence is sequence:
                return seen
        known.append(Seen(sequence, sequence.prompt.token_ids[: sequence.prompt_tokens]))
        return known[-1]

    def take(self, request: GenerateRequest) -> Seen:
        """What was seen of a request that is finished; once."""
        sampling: Sampling = request.sampling
        return self._seen[id(sampling)].pop(0)
