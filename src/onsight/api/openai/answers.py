"""What a chat answer looks like in OpenAI's dialect: our events and answers, as wire JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, TypeAdapter

from onsight import __version__
from onsight.core.generation import (
    Candidate,
    Finished,
    FinishReason,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from onsight.tasks.chat import Answer, ChoiceEvent

FINGERPRINT = f"onsight-{__version__}"


class TopLogprob(BaseModel):
    """`bytes` are the token's own, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: Iterable[ContentLogprob]
    refusal: None = None


class PromptTokensDetails(BaseModel):
    """`cached_tokens` of the prompt were reused; `image_tokens` of it are pictures, `video_tokens` videos."""

    cached_tokens: int
    image_tokens: int
    video_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class FunctionCall(BaseModel):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class MessageCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class CallingMessage(BaseModel):
    """An answer that calls tools; `content` is what it says besides, null for nothing."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MessageCall]


class Choice(BaseModel):
    index: int
    message: AssistantMessage | CallingMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A plain answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str = FINGERPRINT


_COMPLETION = TypeAdapter(ChatCompletion)


class FunctionCallDelta(BaseModel):
    name: str | None = None
    arguments: str = ""


class ToolCallChunk(BaseModel):
    """The next piece of call number `index`; its first one carries `id`, `type` and the function's name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class Delta(BaseModel):
    """What a chunk adds; fields that add nothing are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallChunk] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer. With `include_usage`, `usage` is null in all chunks but the last."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    system_fingerprint: str = FINGERPRINT


@dataclass(frozen=True, slots=True)
class Heading:
    """What every piece of one answer repeats. `created`: Unix time, s."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def completion(heading: Heading, answers: Sequence[Answer], *, logprobs: bool) -> bytes:
    """The plain answer as JSON; with log-probabilities not for the event loop."""
    choices = [
        Choice(
            index=index,
            message=_message(answer),
            logprobs=_logprobs(answer.logprobs) if logprobs else None,
            finish_reason=answer.reason,
        )
        for index, answer in enumerate(answers)
    ]
    usage = usage_of([answer.usage for answer in answers])
    body = ChatCompletion(id=heading.id, created=heading.created, model=heading.model, choices=choices, usage=usage)
    return _COMPLETION.dump_json(body)


def _message(answer: Answer) -> AssistantMessage | CallingMessage:
    if not answer.calls:
        return AssistantMessage(content=answer.text)
    calls = [
        MessageCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in answer.calls
    ]
    return CallingMessage(content=answer.text or None, tool_calls=calls)


async def chunks(
    events: AsyncGenerator[ChoiceEvent, None], heading: Heading, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The streamed answer, one chunk's JSON at a time. Closing it closes `events`."""
    spoken: set[int] = set()
    usages: list[Usage] = []

    def chunk(
        index: int, delta: Delta, tokens: Sequence[TokenLogprob] = (), reason: FinishReason | None = None
    ) -> bytes:
        logprobs = _logprobs(tokens) if tokens else None
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return _chunk(heading, [choice], include_usage=include_usage)

    async with aclosing(events):
        async for event in events:
            if event.index not in spoken:
                spoken.add(event.index)
                said = None if isinstance(event.event, ToolCallDelta) else ""
                yield chunk(event.index, Delta(role="assistant", content=said, refusal=None))
            match event.event:
                case TextDelta("", ()):
                    continue
                case TextDelta(text, tokens):
                    yield chunk(event.index, Delta(content=text), tokens)
                case ToolCallDelta() as piece:
                    yield chunk(event.index, Delta(tool_calls=[_call_chunk(piece)]))
                case Finished(reason, usage):
                    usages.append(usage)
                    yield chunk(event.index, Delta(), reason=reason)
    if include_usage:
        yield _chunk(heading, [], usage=usage_of(usages), include_usage=True)


def _call_chunk(piece: ToolCallDelta) -> ToolCallChunk:
    if piece.id is None:
        return ToolCallChunk(index=piece.index, function=FunctionCallDelta(arguments=piece.arguments))
    function = FunctionCallDelta(name=piece.name, arguments=piece.arguments)
    return ToolCallChunk(index=piece.index, id=piece.id, type="function", function=function)


def _chunk(
    heading: Heading, choices: list[ChunkChoice], *, include_usage: bool, usage: CompletionUsage | None = None
) -> bytes:
    body = ChatCompletionChunk(
        id=heading.id,
        object="chat.completion.chunk",
        created=heading.created,
        model=heading.model,
        choices=choices,
        system_fingerprint=FINGERPRINT,
    )
    if include_usage:
        body.usage = usage
    # Unset fields are left out, and those set to null are kept, which is how OpenAI's own chunks look.
    return body.model_dump_json(exclude_unset=True).encode()


def usage_of(usages: Sequence[Usage]) -> CompletionUsage:
    """The cost of all answers; they share one prompt, which counts once."""
    prompt = max(usage.prompt_tokens for usage in usages)
    generated = sum(usage.completion_tokens for usage in usages)
    details = PromptTokensDetails(
        cached_tokens=max(usage.cached_tokens for usage in usages),
        image_tokens=max(usage.image_tokens for usage in usages),
        video_tokens=max(usage.video_tokens for usage in usages),
    )
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        prompt_tokens_details=details,
    )


def _logprobs(tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    # Made while they are written: a million of them, all there at once, would take a gigabyte, and writing them in one
    # go would hold up every other thread.
    content = (
        ContentLogprob(
            token=token.chosen.text,
            logprob=token.chosen.logprob,
            bytes=list(token.chosen.data),
            top_logprobs=[_top(candidate) for candidate in token.top],
        )
        for token in tokens
    )
    return ChoiceLogprobs.model_construct(content=content, refusal=None)


def _top(candidate: Candidate) -> TopLogprob:
    return TopLogprob(token=candidate.text, logprob=candidate.logprob, bytes=list(candidate.data))
