"""What an answer of `/v1/responses` looks like, whole and as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Literal

from pydantic import BaseModel, Field

from onsight.api.openai.responses_wire import ResponsesRequest
from onsight.api.sse import event
from onsight.core.generation import Finished, FinishReason, TextDelta, ToolCallDelta, Usage
from onsight.tasks.chat import Answer, ChatCall, ChoiceEvent

JsonObject = dict[str, object]
Status = Literal["in_progress", "completed", "incomplete"]
Cut = Literal["max_output_tokens", "content_filter"]
_CUTS: Mapping[FinishReason, Cut] = {"length": "max_output_tokens", "content_filter": "content_filter"}


class SaidText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[None] = []
    logprobs: list[None] = []


class SaidMessage(BaseModel):
    """What the model says."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[SaidText] = []


class MadeCall(BaseModel):
    """A function that the model calls; `arguments` is JSON text."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class InputDetails(BaseModel):
    """`cached_tokens` of the prompt were reused; `image_tokens` of it are pictures."""

    cached_tokens: int
    image_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Cut


class ResponseObject(BaseModel):
    """An answer and what was asked for. `incomplete` means that it was cut, by what `incomplete_details` says."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: Literal[False] = False
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[SaidMessage | MadeCall]
    parallel_tool_calls: bool | None
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


class ResponseEvent(BaseModel):
    """One event of a stream; which other fields it has depends on `type`, as OpenAI's reference says."""

    type: str
    sequence_number: int
    response: ResponseObject | None = Field(None, description="In response.created, .in_progress, .completed, ...")


class Telling:
    """One answer on its way: takes the engine's events, gives the stream's."""

    def __init__(self, request: ResponsesRequest, call: ChatCall, model: str) -> None:
        sampling = call.sampling
        dumped = request.model_dump(include={"text", "tools", "tool_choice"}, by_alias=True)
        form = (dumped["text"] or {}).get("format")
        self._response = ResponseObject(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=sampling.max_tokens,
            metadata=request.metadata or {},
            model=model,
            output=[],
            parallel_tool_calls=request.parallel_tool_calls,
            temperature=sampling.temperature,
            text={"format": form or {"type": "text"}},
            tool_choice=dumped["tool_choice"] or "auto",
            tools=dumped["tools"] or [],
            top_p=sampling.top_p,
        )
        self._sent = 0

    def whole(self, answer: Answer) -> bytes:
        """The plain answer as JSON."""
        if answer.text or not answer.calls:
            self._add_message().content.append(SaidText(text=answer.text))
        for call in answer.calls:
            self._add_call(call.id, call.name).arguments = call.arguments
        for item in self._response.output:
            item.status = "completed"
        self._finish(answer.reason, answer.usage)
        return self._response.model_dump_json().encode()

    async def stream(self, events: AsyncGenerator[ChoiceEvent, None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. Closing it closes `events`."""
        begun = False
        async with aclosing(events):
            async for choice in events:
                # Nothing is told before the engine's first event, so that a refusal is a real status.
                if not begun:
                    begun = True
                    yield self._about("response.created")
                    yield self._about("response.in_progress")
                match choice.event:
                    case TextDelta(text):
                        pieces = self._say(text) if text else iter(())
                    case ToolCallDelta() as piece:
                        pieces = self._call(piece)
                    case Finished(reason, usage):
                        pieces = self._end(reason, usage)
                for data in pieces:
                    yield data

    def _say(self, text: str) -> Iterator[bytes]:
        if not self._response.output:
            yield from self._begin(self._add_message())
        item = self._response.output[-1]
        if isinstance(item, SaidMessage):
            item.content[0].text += text
            yield self._told("response.output_text.delta", self._place(item) | {"delta": text, "logprobs": []})

    def _call(self, piece: ToolCallDelta) -> Iterator[bytes]:
        if piece.id is not None and piece.name is not None:
            yield from self._close("completed")
            yield from self._begin(self._add_call(piece.id, piece.name))
        item = self._response.output[-1]
        if isinstance(item, MadeCall) and piece.arguments:
            item.arguments += piece.arguments
            yield self._told("response.function_call_arguments.delta", self._place(item) | {"delta": piece.arguments})

    def _end(self, reason: FinishReason, usage: Usage) -> Iterator[bytes]:
        if not self._response.output:
            yield from self._begin(self._add_message())
        self._finish(reason, usage)
        yield from self._close("incomplete" if reason in _CUTS else "completed")
        yield self._about(f"response.{self._response.status}")

    def _add_message(self) -> SaidMessage:
        item = SaidMessage(id=f"msg_{uuid.uuid4().hex}")
        self._response.output.append(item)
        return item

    def _add_call(self, call_id: str, name: str) -> MadeCall:
        item = MadeCall(id=f"fc_{uuid.uuid4().hex}", call_id=call_id, name=name)
        self._response.output.append(item)
        return item

    def _finish(self, reason: FinishReason, usage: Usage) -> None:
        cut = _CUTS.get(reason)
        response = self._response
        response.status = "incomplete" if cut else "completed"
        response.incomplete_details = IncompleteDetails(reason=cut) if cut else None
        response.output[-1].status = response.status
        response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens, image_tokens=usage.image_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )

    def _begin(self, item: SaidMessage | MadeCall) -> Iterator[bytes]:
        """A new item, empty; a message's one part too."""
        yield self._item("response.output_item.added", item)
        if isinstance(item, SaidMessage):
            item.content.append(SaidText())
            yield self._part("response.content_part.added", item)

    def _close(self, status: Status) -> Iterator[bytes]:
        """The last item, whole, if there is one."""
        if not self._response.output:
            return
        item = self._response.output[-1]
        item.status = status
        if isinstance(item, SaidMessage):
            text = item.content[0].text
            yield self._told("response.output_text.done", self._place(item) | {"text": text, "logprobs": []})
            yield self._part("response.content_part.done", item)
        else:
            done = {"name": item.name, "arguments": item.arguments}
            yield self._told("response.function_call_arguments.done", self._place(item) | done)
        yield self._item("response.output_item.done", item)

    def _place(self, item: SaidMessage | MadeCall) -> dict[str, object]:
        place: dict[str, object] = {"item_id": item.id, "output_index": len(self._response.output) - 1}
        return place | {"content_index": 0} if isinstance(item, SaidMessage) else place

    def _part(self, kind: str, item: SaidMessage) -> bytes:
        return self._told(kind, self._place(item) | {"part": item.content[0].model_dump()})

    def _item(self, kind: str, item: SaidMessage | MadeCall) -> bytes:
        return self._told(kind, {"output_index": len(self._response.output) - 1, "item": item.model_dump()})

    def _about(self, kind: str) -> bytes:
        return self._told(kind, {"response": self._response.model_dump()})

    def _told(self, kind: str, fields: Mapping[str, object]) -> bytes:
        body = {"type": kind, "sequence_number": self._sent, **fields}
        self._sent += 1
        return event(json.dumps(body, ensure_ascii=False).encode(), kind)
