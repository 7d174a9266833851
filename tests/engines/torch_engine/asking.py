"""Short words for the tests of this folder: build a request, collect an answer, compare it with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from onsight.core.generation import Finished, FinishReason, GenerateRequest, Sampling, TextDelta, TokenLogprob, Usage
from onsight.core.messages import Image, Message, Role, Text, Video
from onsight.engines.torch_engine import TorchEngine
from tests.engines.torch_engine.reference import Expected, Reference

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Answer:
    text: str
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    usage: Usage


def turn(*parts: str | Image | Video, role: Role = "user") -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))


def asking(*messages: Message, schema: str | None = None, **sampling: object) -> GenerateRequest:
    """A greedy request for 12 tokens with the 20 likeliest at each place, unless told otherwise."""
    chosen = Sampling(**{"temperature": 0.0, "max_tokens": 12, "logprobs": True, "top_logprobs": 20} | sampling)  # type: ignore[arg-type]
    return GenerateRequest(messages, chosen, schema)


async def answer(engine: TorchEngine, request: GenerateRequest) -> Answer:
    text, logprobs = "", ()
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            match event:
                case TextDelta(piece, tokens):
                    text += piece
                    logprobs += tokens
                case Finished(reason, usage):
                    return Answer(text, logprobs, reason, usage)
    raise AssertionError("no Finished event")


def check(made: Answer, expected: Expected, reference: Reference) -> None:
    """The same tokens, and every log-probability within `TOLERANCE` of the reference's."""
    tokenizer = reference.tokenizer
    wanted = [token for token in expected.tokens if token not in reference.ends]
    assert made.usage.prompt_tokens == len(expected.prompt)
    assert made.usage.completion_tokens == len(expected.tokens)
    assert made.text == tokenizer.decode(wanted, skip_special_tokens=True)
    assert len(made.logprobs) == len(wanted)
    for place, (token, reported) in enumerate(zip(wanted, made.logprobs, strict=True)):
        theirs = expected.logprobs[place]
        assert abs(reported.chosen.logprob - float(theirs[token])) <= TOLERANCE
        best = theirs.topk(len(reported.top)).values.tolist()
        assert all(abs(ours.logprob - one) <= TOLERANCE for ours, one in zip(reported.top, best, strict=True))


def expectations(reference: Reference, requests: Sequence[GenerateRequest]) -> list[Expected]:
    return [reference.generate(request.messages, request.sampling.max_tokens or 12) for request in requests]
