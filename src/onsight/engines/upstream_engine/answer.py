"""From an upstream server's streamed JSON to our events; whatever is not as it should be is an error of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ConfigDict

from onsight.core.errors import EngineFailed, Unsupported
from onsight.core.generation import (
    Candidate,
    FinishReason,
    GenerateRequest,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from onsight.core.json_text import is_json

Delta = TextDelta | ToolCallDelta

GARBAGE = "the model's server answered in a way that cannot be read; the server's log says more"


_REASONS: Mapping[str, FinishReason] = {reason: reason for reason in get_args(FinishReason)}
_SHOWN = 40


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _Candidate(_Wire):
    token: str
    logprob: float
    bytes: list[int] | None = None

    def candidate(self) -> Candidate:
        data = self.token.encode() if self.bytes is None else bytes(self.bytes)
        return Candidate(self.token, data, min(self.logprob, 0.0))


class _Token(_Candidate):
    top_logprobs: list[_Candidate] = []


class _Logprobs(_Wire):
    content: list[_Token] | None = None


class _Function(_Wire):
    name: str | None = None
    arguments: str | None = None


class _Call(_Wire):
    index: int
    id: str | None = None
    function: _Function = _Function()


class _Delta(_Wire):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(_Wire):
    delta: _Delta
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(_Wire):
    cached_tokens: int | None = None
    image_tokens: int | None = None


class _Usage(_Wire):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Chunk(_Wire):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


class AnswerReader:
    """Reads one answer's lines. `reason` and `usage` are known once they came; `done` after the last line.

    `top_logprobs`: as many of a place's likeliest tokens were asked for; some servers send more.
    """

    def __init__(self, top_logprobs: int = 0) -> None:
        self._top_logprobs = top_logprobs
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.counted_images = False
        self.done = False
        self._called: list[str] = []
        self._text = ""
        self._has_logprobs = False

    def require_asked(self, request: GenerateRequest) -> None:
        """Raises Unsupported when the whole answer lacks what was asked for: some servers pass over what they lack.

        EngineFailed: the model called what it was not offered.
        """
        choice = None if request.tools is None else request.tools.choice
        allowed = () if request.tools is None else [tool.name for tool in request.tools.callable]
        if any(name not in allowed for name in self._called):
            if choice is not None and choice.name is not None:
                raise _passed_over("tool_choice")
            raise EngineFailed("the model called a tool that the request does not offer; ask again")
        if request.sampling.logprobs and self._text and not self._has_logprobs:
            raise _passed_over("logprobs")
        if self.reason in ("length", "content_filter"):
            return
        if choice is not None and choice.mode == "required" and not self._called:
            raise _passed_over("tool_choice")
        # A stop text may have ended it anywhere.
        whole = not request.sampling.stop and not self._called
        if request.schema is not None and whole and not is_json(self._text):
            raise _passed_over("response_format")

    def read(self, line: bytes) -> list[Delta]:
        """What one line of the stream says, if it says anything. Raises EngineFailed."""
        field, _, data = line.partition(b":")
        if field not in (b"data", b"error"):
            return []  # a blank line between events, or a comment that keeps the connection alive
        if data.strip() == b"[DONE]":
            self.done = True
            return []
        try:
            if field == b"error":
                raise ValueError(f"an error in the middle of the answer: {data[:500]!r}")
            return self._take(_Chunk.model_validate_json(data))
        except ValueError as error:  # pydantic's is one too
            raise EngineFailed(GARBAGE) from error

    def _take(self, chunk: _Chunk) -> list[Delta]:
        if chunk.error is not None:
            raise ValueError(f"an error in the middle of the answer: {chunk.error}")
        if chunk.usage is not None:
            self._count(chunk.usage)
        if not chunk.choices:
            return []
        (choice,) = chunk.choices
        if choice.finish_reason:
            self.reason = _reason(choice.finish_reason)
        tokens = (choice.logprobs.content or []) if choice.logprobs else []
        text = choice.delta.content or ""
        self._text += text
        self._has_logprobs |= bool(tokens)
        if choice.finish_reason == "stop" and not text:
            tokens = []  # vLLM names the token that ended the answer, which is no part of it
        deltas: list[Delta] = [self._call(call) for call in choice.delta.tool_calls or []]
        if text or tokens:
            deltas.append(TextDelta(text, tuple(self._logprob(token) for token in tokens)))
        return deltas

    def _logprob(self, token: _Token) -> TokenLogprob:
        top = token.top_logprobs[: self._top_logprobs]
        return TokenLogprob(token.candidate(), tuple(other.candidate() for other in top))

    def _call(self, call: _Call) -> ToolCallDelta:
        """Calls come one after another, each first with its name; what breaks that order cannot be read."""
        arguments = call.function.arguments or ""
        if call.index == len(self._called) and call.id and call.function.name:
            self._called.append(call.function.name)
            return ToolCallDelta(call.index, arguments, call.id, call.function.name)
        if call.index != len(self._called) - 1:
            raise ValueError(f"call {call.index} comes after {len(self._called)} calls")
        return ToolCallDelta(call.index, arguments)

    def _count(self, usage: _Usage) -> None:
        details = usage.prompt_tokens_details or _Details()
        self.counted_images = details.image_tokens is not None
        self.usage = Usage(
            usage.prompt_tokens, usage.completion_tokens, details.cached_tokens or 0, details.image_tokens or 0
        )


def _reason(said: str) -> FinishReason:
    """Raises EngineFailed for an end that OpenAI's API does not know, as vLLM's "abort"."""
    if said not in _REASONS:
        raise EngineFailed(f"the model's server ended the answer with {said[:_SHOWN]!r}; ask again")
    return _REASONS[said]


def _passed_over(field: str) -> Unsupported:
    return Unsupported(
        f"this model's server passed over {field}: leave it out, or serve the model otherwise", param=field
    )
