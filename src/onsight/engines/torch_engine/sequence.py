"""One request on its way through the engine."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from onsight.core.errors import RequestError
from onsight.core.generation import Event, Sampling, Usage
from onsight.core.geometry import View
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.grammar import Grammar
from onsight.engines.torch_engine.prompt import ImagePlan, Prompt, Span
from onsight.engines.torch_engine.tool_calls import CallReader


@dataclass(slots=True, eq=False)
class Sequence:
    """Everything that is known of one request. Only the model's thread changes it, but for `cancelled`.

    `limit`: most tokens to answer with. `computed`: how many of its tokens have keys and values in `slot`.
    `cached`: how many of the prompt's were taken over from an earlier request. `looking`: its pictures are being
    encoded. `mailbox`: read by the waiting caller, through `reader` where the answer may hold calls. `caller`: whose
    turn it is when it is this one's.
    """

    prompt: Prompt
    sampling: Sampling
    limit: int
    text: TextStream
    grammar: Grammar | None = None
    reader: CallReader | None = None
    caller: str = ""
    mailbox: asyncio.Queue[Event | RequestError] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    slot: int = -1
    computed: int = 0
    looking: bool = False
    cached: int = 0
    answer: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = field(init=False)
    _dice: random.Random = field(init=False)
    _rolled: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.prompt.token_ids)
        # Python's own generator, not torch's: the same seed draws the same numbers on every device.
        self._dice = random.Random(self.sampling.seed)

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.computed >= len(self.prompt.token_ids)

    def unseen(self) -> list[Span]:
        """Pictures without features that the unread part of the prompt needs.

        With cross-attention that is all of them at once: words before a picture depend on it too.
        """
        prompt = self.prompt
        if prompt.seen is not None:
            return [span for span in prompt.spans if self.computed == 0 and span.features is None]
        return [span for span in prompt.spans if span.features is None and span.stop > self.computed]

    @property
    def last_token(self) -> int:
        return self.answer[-1]

    def roll(self) -> float:
        """What chance says of the next token, from 0 to 1; the same again where a step fails and is made again."""
        if self._rolled is None:
            self._rolled = self._dice.random()
        return self._rolled

    def append(self, token_id: int) -> None:
        """Take the next token of the answer; its keys and values are not computed yet."""
        self._rolled = None
        self.answer.append(token_id)
        self.prompt.identity.append(token_id)
        self.counts[token_id] += 1

    @property
    def outgrown(self) -> bool:
        """Whether its next token has no valid position: everything must be placed and read again."""
        return self.prompt.placed_for is not None and self.computed >= self.prompt.placed_for

    def read_again(self) -> None:
        """Make prompt and answer one prompt, of which nothing is computed yet."""
        self.prompt.token_ids += self.answer[len(self.prompt.token_ids) - self.prompt_tokens :]
        self.computed = 0

    def views(self) -> tuple[View, ...]:
        """How each picture was seen."""
        return tuple(span.plan.view for span in self.prompt.spans if isinstance(span.plan, ImagePlan))

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens, len(self.answer), self.cached, self.prompt.image_tokens, self.prompt.video_tokens
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of prompt tokens, [start, stop), to be read in one forward."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def last(self) -> bool:
        """Whether the prompt ends here, so that the first token of the answer can be chosen."""
        return self.stop == len(self.sequence.prompt.token_ids)
