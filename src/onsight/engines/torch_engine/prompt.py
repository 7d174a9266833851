"""A request as the model reads it: token ids, pictures in their places, positions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from onsight.core.messages import Image, Message, Text
from onsight.core.tools import Tool
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.turns import Piece
from onsight.engines.torch_engine.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """How a family will look at one picture; worked out from its size alone, before any pixel is touched.

    `key`: SHA-256 (hex) of content and processing settings, the picture's name in the caches.
    `token_ids`: what stands for it in the prompt, the family's image token wherever a feature goes.
    `grid`: the family's own (rows, columns): tiles for SmolVLM, patches for Qwen. `settings`: what `prepare` applies.
    """

    image: Image
    key: str
    token_ids: tuple[int, ...]
    grid: tuple[int, int]
    settings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture resized and normalised for its encoder, on the CPU. `values`: the family's own shape, float32."""

    plan: ImagePlan
    values: torch.Tensor


@dataclass(slots=True)
class Span:
    """A picture's place in the prompt: ids `start` to `stop`, features at `places`.

    `features` are [len(places), hidden] once known; `pixels` are there when the encoder may still be needed.
    """

    plan: ImagePlan
    start: int
    stop: int
    places: list[int]
    features: torch.Tensor | None = None
    pixels: Pixels | None = None

    def places_in(self, start: int, stop: int) -> tuple[int, int]:
        """Which of `places` lie in [start, stop), as a range of their indices."""
        return bisect_left(self.places, start), bisect_left(self.places, stop)


@dataclass(slots=True)
class Prompt:
    """`identity` names each position for prefix comparison: text by its token, a picture by its key.

    `positions`: [axes, tokens], the rotary positions; a later token at index i has position i + `delta` on every axis.
    `seen`: [tokens, tiles of all pictures], True where a token sees a tile by cross-attention, later tokens what the
    last one sees; None where nothing is seen that way.
    `placed_for`: most tokens, prompt and answer together, that these positions hold for; None is any number.
    """

    token_ids: list[int]
    identity: list[int]
    spans: list[Span] = field(default_factory=list)
    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    delta: int = 0
    seen: torch.Tensor | None = None
    placed_for: int | None = None

    @property
    def image_tokens(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


def lay_out(
    messages: Sequence[Message],
    template: ChatTemplate,
    vocabulary: Vocabulary,
    plans: Sequence[ImagePlan],
    image_token_id: int | None,
    tools: Sequence[Tool] = (),
) -> Prompt:
    """The prompt for `messages`, whose pictures are planned in order; positions are the family's to add."""
    return write(template.render(messages, tools), vocabulary, plans, image_token_id)


def write(
    pieces: Iterable[Piece], vocabulary: Vocabulary, plans: Sequence[ImagePlan], image_token_id: int | None
) -> Prompt:
    """The prompt that `pieces` make one after another; `plans` are those of the pictures among them, in order."""
    prompt = Prompt([], [])
    waiting = iter(plans)
    runs: list[tuple[str, bool]] = []

    def write_text() -> None:
        ids = vocabulary.encode(runs)
        prompt.token_ids += ids
        prompt.identity += ids
        runs.clear()

    for piece in pieces:
        if isinstance(piece, Image):
            write_text()
            _write_image(prompt, next(waiting), image_token_id)
        else:
            runs.append((piece.text, not isinstance(piece, Text)))
    write_text()
    return prompt


def _write_image(prompt: Prompt, plan: ImagePlan, image_token_id: int | None) -> None:
    start = len(prompt.token_ids)
    places = [start + offset for offset, token in enumerate(plan.token_ids) if token == image_token_id]
    prompt.spans.append(Span(plan, start, start + len(plan.token_ids), places))
    prompt.token_ids += plan.token_ids
    # Negative, so that it is no token; 60 bits of the key, so that two pictures never share it.
    prompt.identity += [-1 - int(plan.key[:15], 16)] * len(plan.token_ids)
