"""The fake engine: no model, for tests, documentation and page work; it says so in every answer."""

from __future__ import annotations

import asyncio
import json
import random
import re
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from onsight.core.engine import EngineState, EngineStatus
from onsight.core.errors import ContextTooLong, EngineFailed, InvalidRequest, Unavailable
from onsight.core.generation import (
    Candidate,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from onsight.core.geometry import View
from onsight.core.messages import Image, Text, Video
from onsight.core.tools import Tool

IMAGE_TOKENS = 16
"""What the fake engine says a picture costs, and a frame of a video."""

_CALLED: FinishReason = "tool_calls"

VOCABULARY = ("red", "green", "blue", "grey", "wide", "tall", "small", "large")


@dataclass(frozen=True, slots=True)
class FakeScript:
    """How a fake engine behaves. `step_s`: pause before each token. `fail_after`: break after so many tokens."""

    step_s: float = 0.0
    fail_after: int | None = None
    context_tokens: int = 4096


class FakeEngine:
    """Answers `fake engine: <last text> <pictures and videos>`, then words drawn by the seed until `max_tokens` (32
    when unset). Offered tools, it calls those that the last user's text names; a required call it makes in any case."""

    def __init__(self, script: FakeScript = FakeScript()) -> None:
        self._script = script
        self._state: EngineState = "loading"
        self._running = 0
        self._prompt_tokens_total = 0
        self._steps_total = 0

    @property
    def context_tokens(self) -> int:
        return self._script.context_tokens

    async def start(self) -> None:
        self._state = "ready"

    async def close(self) -> None:
        self._state = "dead"

    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self._state,
            device="none",
            running=self._running,
            prompt_tokens_total=self._prompt_tokens_total,
            steps_total=self._steps_total,
            step_requests_total=self._steps_total,
            detail="the fake engine has no model",
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `ChatEngine.generate`."""
        if self._state != "ready":
            raise Unavailable(f"the engine is {self._state}; try again soon")
        prompt_tokens, image_tokens, video_tokens = self._count(request)
        for tool in () if request.tools is None else request.tools.tools:
            _example(tool.parameters, tool.param)
        calls = _pieces(_called(request))
        tokens, ends = ([""] * len(calls), _CALLED) if calls else self._answer(request)
        most = request.sampling.max_tokens
        if most is not None and most < len(tokens):
            tokens, ends = tokens[:most], "length"
        self._prompt_tokens_total += prompt_tokens
        self._running += 1
        try:
            sent = ""
            held = _StopText(() if calls else request.sampling.stop)
            count = 0
            for count, token in enumerate(tokens, 1):
                await asyncio.sleep(self._script.step_s)
                if self._state != "ready":
                    raise Unavailable("the engine was closed; try again soon")
                if self._script.fail_after is not None and count > self._script.fail_after:
                    raise EngineFailed("the engine failed on this request; the server's log says why")
                self._steps_total += 1
                if calls:
                    yield calls[count - 1]
                    continue
                sent = held.push(token)
                yield TextDelta(sent, _logprobs(token, request))
                if held.stopped:
                    ends = "stop"
                    break
            rest = held.rest()
            if rest:
                yield TextDelta(rest)
            yield Finished(ends, Usage(prompt_tokens, count, 0, image_tokens, video_tokens), _views(request))
        finally:
            self._running -= 1

    def _count(self, request: GenerateRequest) -> tuple[int, int, int]:
        """(prompt tokens, image tokens of them, video tokens of them). Raises ContextTooLong."""
        texts = sum(
            len(part.text.split()) for message in request.messages for part in message.parts if isinstance(part, Text)
        )
        images = sum(IMAGE_TOKENS for message in request.messages for _ in message.images)
        videos = sum(IMAGE_TOKENS * len(video.timestamps) for message in request.messages for video in message.videos)
        total = texts + images + videos
        if total >= self._script.context_tokens:
            raise ContextTooLong(
                f"the prompt takes {total} tokens (text {texts}, pictures {images}, videos {videos});"
                f" the model holds {self._script.context_tokens}: shorten the text or send fewer pictures",
                param="messages",
            )
        return total, images, videos

    def _answer(self, request: GenerateRequest) -> tuple[list[str], FinishReason]:
        if request.schema is not None:
            return [_example(request.schema, "response_format")], "stop"
        last = request.messages[-1]
        said = " ".join(part.text for part in last.parts if isinstance(part, Text))
        seen = " ".join(_seen(part) for part in last.media)
        # Without a temperature nothing is drawn, and the same request always gets the same words.
        chance = random.Random(0 if request.sampling.temperature == 0 else request.sampling.seed)
        words = [chance.choice(VOCABULARY) for _ in range(8)]
        return re.findall(r"\S+|\s+", f"fake engine: {said} {seen} " + " ".join(words)), "stop"


def _seen(part: Image | Video) -> str:
    frames = f"x{len(part.timestamps)}" if isinstance(part, Video) else ""
    return f"[{part.width}x{part.height}{frames}]"


class _StopText:
    """Holds back what could begin a stop text, as the real engines do."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped = True
            out, self._held = self._held[: min(places)], ""
            return out
        longest = max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._held.endswith(stop[:size])), default=0
        )
        cut = len(self._held) - longest
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def rest(self) -> str:
        out, self._held = self._held, ""
        return out


def _views(request: GenerateRequest) -> tuple[View, ...]:
    """It sees every picture as large as it is."""
    return tuple(View(image.size, image.size) for message in request.messages for image in message.images)


def _logprobs(token: str, request: GenerateRequest) -> tuple[TokenLogprob, ...]:
    if not request.sampling.logprobs:
        return ()
    chosen = Candidate(token, token.encode(), 0.0)
    others = [Candidate(word, word.encode(), -9.0) for word in VOCABULARY]
    return (TokenLogprob(chosen, (chosen, *others)[: request.sampling.top_logprobs]),)


def _called(request: GenerateRequest) -> list[Tool]:
    """The tools that the answer calls, in the client's order."""
    if request.tools is None:
        return []
    use = request.tools
    last = request.messages[-1]
    said = " ".join(part.text for part in last.parts if isinstance(part, Text)) if last.role == "user" else ""
    named = [tool for tool in use.callable if re.search(rf"\b{re.escape(tool.name)}\b", said)]
    if not named and use.choice.mode == "required":
        named = [use.callable[0]]
    return named[:1] if use.parallel is False else named


def _pieces(calls: list[Tool]) -> list[ToolCallDelta]:
    """The calls' events: its id and name, then its arguments in two pieces; one token each."""
    pieces: list[ToolCallDelta] = []
    for index, tool in enumerate(calls):
        arguments = _example(tool.parameters, tool.param)
        half = len(arguments) // 2
        pieces.append(ToolCallDelta(index, id=f"call_{uuid.uuid4().hex[:24]}", name=tool.name))
        pieces += [ToolCallDelta(index, piece) for piece in (arguments[:half], arguments[half:])]
    return pieces


def _example(schema: str, param: str | None) -> str:
    """The smallest JSON that a simple schema accepts. Raises InvalidRequest for text that is no schema."""
    try:
        table = json.loads(schema)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise InvalidRequest("the JSON schema is not a JSON object", param=param)
    return json.dumps(_value(table))


def _value(schema: dict[str, object]) -> object:
    kind = schema.get("type", "object")
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return enum[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _value(inner) for name, inner in properties.items()} if isinstance(properties, dict) else {}
    return {"string": "fake", "integer": 0, "number": 0.0, "boolean": False, "array": [], "null": None}.get(str(kind))
