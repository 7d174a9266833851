"""One request for text, and the events that answer it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onsight.core.geometry import View
from onsight.core.messages import Message
from onsight.core.tools import ToolUse

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Every default is stated here; none comes from a checkpoint's generation_config.

    `max_tokens`: most tokens to answer with; None means as many as the context still holds.
    `temperature`: 0 is greedy. `top_p` in (0, 1], 1 is off. `top_k`: 0 is off. `seed`: None draws one.
    `presence_penalty`, `frequency_penalty`: OpenAI's, in -2..2, over the tokens generated so far (never over media
    tokens).
    `stop`: the answer ends before the first of these texts. `logprobs`: report the chosen token's log-probability,
    with the `top_logprobs` most likely ones (0..20) beside it.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """The canonical request: every wire dialect becomes this. `schema` is JSON Schema text that the answer's text must
    satisfy; `tools` may be called instead of saying something. `caller`: who asks; those who wait take turns by it."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    schema: str | None = None
    tools: ToolUse | None = None
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token and its natural-log probability; `data` is the token's own bytes, which may be part of a character."""

    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token, and the most likely ones at its place (most likely first)."""

    chosen: Candidate
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost, in tokens. `cached_tokens` of `prompt_tokens` were reused; `image_tokens` of them are
    pictures, `video_tokens` videos with what is said around their frames."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer; whole characters only. `text` may be empty when only log-probabilities are due."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of call number `index` (from 0). Its first one carries `id` and `name`; `arguments` is JSON text
    that goes on from piece to piece."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event, exactly once, unless the engine raised. `views`: how each picture was seen, in their order.

    An answer that ends with calls ends with "tool_calls"; "content_filter" is the end of one that another server's
    filter cut.
    """

    reason: FinishReason
    usage: Usage
    views: tuple[View, ...] = ()


Event = TextDelta | ToolCallDelta | Finished
