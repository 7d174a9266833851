"""A request as the model reads it: token ids, pictures and videos in their places, positions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import torch

from onsight.core.geometry import Size, View
from onsight.core.messages import Image, Message, Text, Video
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
    `seen`: the size (px) that the picture is resized to, padding not counted; `prepare` keeps to it.
    """

    image: Image
    key: str
    token_ids: tuple[int, ...]
    grid: tuple[int, int]
    settings: tuple[int, ...]
    seen: Size

    @property
    def view(self) -> View:
        return View(self.image.size, self.seen)


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """How a family will look at one video; see `ImagePlan`.

    `times`: how many moments its features tell apart, of `grid` each. `opening`, `closing`: words of the family's
    before and after `token_ids`, read in one with what stands there.
    """

    video: Video
    key: str
    token_ids: tuple[int, ...]
    grid: tuple[int, int]
    settings: tuple[int, ...]
    times: int
    opening: str = ""
    closing: str = ""


Plan = ImagePlan | VideoPlan


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture or video resized for its encoder, on the CPU. `values`: the family's own shape; pictures are normalised
    (float32), the many frames of a video stay 8 bits a channel until they are encoded."""

    plan: Plan
    values: torch.Tensor


@dataclass(slots=True)
class Span:
    """A picture's or a video's place in the prompt: ids `start` to `stop`, features at `places`.

    `features` are [len(places), hidden] once known; `pixels` are there when the encoder may still be needed.
    """

    plan: Plan
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
    """`identity` names each position for prefix comparison: text by its token, a picture or a video by its key.

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
        return sum(span.stop - span.start for span in self.spans if isinstance(span.plan, ImagePlan))

    @property
    def video_tokens(self) -> int:
        return sum(span.stop - span.start for span in self.spans if isinstance(span.plan, VideoPlan))


def lay_out(
    messages: Sequence[Message],
    template: ChatTemplate,
    vocabulary: Vocabulary,
    plans: Sequence[Plan],
    feature_token_ids: Set[int | None],
    tools: Sequence[Tool] = (),
) -> Prompt:
    """The prompt for `messages`, whose pictures and videos are planned in order; positions are the family's to add.

    `feature_token_ids` are what stands in a plan's `token_ids` wherever a feature goes.
    """
    return write(template.render(messages, tools), vocabulary, plans, feature_token_ids)


def write(
    pieces: Iterable[Piece], vocabulary: Vocabulary, plans: Sequence[Plan], feature_token_ids: Set[int | None]
) -> Prompt:
    """The prompt that `pieces` make one after another; `plans` are those of the media among them, in order."""
    prompt = Prompt([], [])
    images = iter([plan for plan in plans if isinstance(plan, ImagePlan)])
    videos = iter([plan for plan in plans if isinstance(plan, VideoPlan)])
    runs: list[tuple[str, bool]] = []

    def write_text() -> None:
        ids = vocabulary.encode(runs)
        prompt.token_ids += ids
        prompt.identity += ids
        runs.clear()

    for piece in pieces:
        match piece:
            case Image():
                write_text()
                _write_media(prompt, next(images), feature_token_ids)
            case Video():
                plan = next(videos)
                runs.append((plan.opening, True))
                write_text()
                _write_media(prompt, plan, feature_token_ids)
                runs.append((plan.closing, True))
            case _:
                runs.append((piece.text, not isinstance(piece, Text)))
    write_text()
    return prompt


def _write_media(prompt: Prompt, plan: Plan, feature_token_ids: Set[int | None]) -> None:
    start = len(prompt.token_ids)
    places = [start + offset for offset, token in enumerate(plan.token_ids) if token in feature_token_ids]
    prompt.spans.append(Span(plan, start, start + len(plan.token_ids), places))
    prompt.token_ids += plan.token_ids
    # Negative, so that it is no token; 60 bits of the key, so that two pictures never share it.
    prompt.identity += [-1 - int(plan.key[:15], 16)] * len(plan.token_ids)
