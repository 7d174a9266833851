"""What the engine asks of a model family; everything that differs between architectures is behind these few verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from onsight.core.messages import Image, Video
from onsight.engines.torch_engine.families.decoder import Decoder
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Prompt, VideoPlan
from onsight.engines.torch_engine.tool_syntax import ToolSyntax
from onsight.engines.torch_engine.turns import VideoWords


class Watcher(Protocol):
    """How a family looks at videos; `plan` and `prepare` run in the pool, on several threads at once."""

    @property
    def words(self) -> VideoWords:
        """What the chat template writes where a video goes."""
        ...

    @property
    def token_id(self) -> int:
        """The id at whose places features stand."""
        ...

    def plan(self, video: Video) -> VideoPlan:
        """How `video` will be seen. Raises InvalidMedia for one that cannot be."""
        ...

    def prepare(self, plan: VideoPlan) -> Pixels:
        """Resize; `Family.encode` normalises."""
        ...


class Family(Protocol):
    """One loaded model.

    `plan`, `prepare` and `place` run in the pool, on several threads at once; the rest on the model's own thread.
    """

    @property
    def decoder(self) -> Decoder:
        """The language model."""
        ...

    @property
    def image_text(self) -> str:
        """What the chat template writes where a picture goes.

        With `{number}` in it, pictures are numbered from 1 and turns are given to the template as plain strings.
        """
        ...

    @property
    def chat_template(self) -> str | None:
        """The family's own template (Jinja), where a checkpoint's is not to be followed; None follows it."""
        ...

    @property
    def tool_syntax(self) -> ToolSyntax:
        """How its models are told of tools and write calls."""
        ...

    @property
    def image_token_id(self) -> int | None:
        """The id at whose places features stand; None where pictures are seen by cross-attention instead."""
        ...

    @property
    def watcher(self) -> Watcher | None:
        """How videos are seen; None where they are not."""
        ...

    @property
    def media_token_ids(self) -> frozenset[int]:
        """Ids that only pictures and videos may put into a prompt: never sampled."""
        ...

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end the family's turns, besides those that the checkpoint names."""
        ...

    @property
    def context_tokens(self) -> int:
        """Most positions that the checkpoint was made for."""
        ...

    def plan(self, image: Image, among: int = 1) -> ImagePlan:
        """How `image`, one of `among` in its request, will be seen under its options.

        Raises InvalidRequest for an option that cannot be honoured.
        """
        ...

    def prepare(self, plan: ImagePlan) -> Pixels:
        """Resize and normalise."""
        ...

    def place(self, prompt: Prompt) -> None:
        """Fill in the prompt's `positions` and `delta`; with cross-attention also `seen` and what `identity` lacks.

        Where positions hold for a while only, fill in `placed_for` too: once the answer has come so far, `place` is
        called again, on the model's thread. Raises InvalidRequest for more pictures than the model can see.
        """
        ...

    def encode(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """Features of each picture or video on the device: [its places, hidden]; for cross-attention [all patches,
        hidden]."""
        ...
