"""Short words for the tests of this folder: build a request, collect an answer, compare it with the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import torch

from onsight.core.generation import Finished, FinishReason, GenerateRequest, Sampling, TextDelta, TokenLogprob, Usage
from onsight.core.messages import Image, Message, Role, Text, Video
from onsight.engines.torch_engine import TorchEngine
from tests.engines.fidelity import TOLERANCE, Seen, WatchedEngine
from tests.engines.torch_engine.reference import Expected, Reference


class Panic(BaseException):
    """As a library that is written in Rust raises where it panics: no `Exception`."""


@dataclass(frozen=True)
class Answer:
    """`seen`: what the engine's sampler saw, where the engine is watched."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    usage: Usage
    seen: Seen | None


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
                    seen = engine.watch.take(request) if isinstance(engine, WatchedEngine) else None
                    return Answer(text, logprobs, reason, usage, seen)
    raise AssertionError("no Finished event")


def check(made: Answer, expected: Expected, reference: Reference) -> float:
    """The same prompt and answer, token by token; the largest difference of any logit at any generated position.

    That and every reported log-probability must be within `TOLERANCE` of the reference's.
    """
    tokenizer, seen = reference.tokenizer, made.seen
    assert seen is not None
    assert made.usage.prompt_tokens == len(expected.prompt) == len(seen.prompt)
    # Negative ids are a reference's own way to say that a picture's feature stands there.
    assert all(ours == one for ours, one in zip(seen.prompt, expected.prompt, strict=True) if one >= 0)
    assert seen.tokens == expected.tokens
    assert made.usage.completion_tokens == len(expected.tokens)
    wanted = [token for token in expected.tokens if token not in reference.ends]
    assert made.text == tokenizer.decode(wanted, skip_special_tokens=True)
    assert len(made.logprobs) == len(wanted)
    for place, (token, reported) in enumerate(zip(wanted, made.logprobs, strict=True)):
        theirs = expected.logprobs[place]
        assert abs(reported.chosen.logprob - float(theirs[token])) <= TOLERANCE
        best = theirs.topk(len(reported.top)).values.tolist()
        assert all(abs(ours.logprob - one) <= TOLERANCE for ours, one in zip(reported.top, best, strict=True))
    return difference(seen.logits, expected.logits)


def check_all(made: Iterable[Answer], expected: Iterable[Expected], reference: Reference) -> float:
    """`check` for each; the largest difference of all."""
    return max(check(ours, theirs, reference) for ours, theirs in zip(made, expected, strict=True))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference between two tensors of one shape, which must be within `TOLERANCE`."""
    assert ours.shape == theirs.shape
    largest = float((ours - theirs).abs().max())
    assert largest <= TOLERANCE
    return largest


def expectations(reference: Reference, requests: Sequence[GenerateRequest]) -> list[Expected]:
    return [reference.generate(request.messages, request.sampling.max_tokens or 12) for request in requests]
