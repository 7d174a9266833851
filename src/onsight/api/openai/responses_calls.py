"""A request to `/v1/responses` as the call that the chat task understands. Pure."""

from __future__ import annotations

import json
from dataclasses import replace

from onsight.api.openai.calls import first_given
from onsight.api.openai.responses_wire import (
    AnyJsonFormat,
    CallItem,
    Content,
    InputFile,
    InputImage,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ResponsesRequest,
    ResultItem,
    SchemaFormat,
)
from onsight.api.openai.tools import FlatChoice, to_use
from onsight.api.services import ApiSettings
from onsight.core.errors import InvalidRequest
from onsight.core.generation import Sampling
from onsight.core.messages import Draft, ImageOptions, ImageRef, Text
from onsight.core.pages import Pages
from onsight.core.tools import ToolCall, ToolUse
from onsight.media.data_url import as_url
from onsight.models.card import Defaults
from onsight.tasks.chat import ChatCall


def to_call(
    request: ResponsesRequest, settings: ApiSettings, request_id: str, defaults: Defaults, caller: str = ""
) -> ChatCall:
    """`request`, with the model's `defaults` where it names none, else the server's.

    Raises InvalidRequest for items that do not fit.
    """
    told = (Draft("system", (Text(request.instructions),)),) if request.instructions else ()
    return ChatCall(
        drafts=told + tuple(_drafts(request.input)),
        model=request.model,
        sampling=Sampling(
            max_tokens=request.max_output_tokens or settings.max_tokens_default,
            temperature=first_given(request.temperature, defaults.temperature, settings.temperature_default),
            top_p=first_given(request.top_p, defaults.top_p, settings.top_p_default),
        ),
        schema=_schema(request),
        request_id=request_id,
        caller=caller,
        tools=_tools(request),
    )


def _drafts(items: list[Item]) -> list[Draft]:
    """The items as messages; calls belong to the assistant's message before them."""
    drafts: list[Draft] = []
    asked: set[str] = set()
    for index, item in enumerate(items):
        place = f"input.{index}"
        match item:
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                drafts.append(Draft(role, _parts(item.content, f"{place}.content")))
            case CallItem():
                call = ToolCall(item.call_id, item.name, item.arguments)
                asked.add(item.call_id)
                if drafts and drafts[-1].role == "assistant":
                    drafts[-1] = replace(drafts[-1], parts=(*drafts[-1].parts, call))
                else:
                    drafts.append(Draft("assistant", (call,)))
            case ResultItem():
                if item.call_id not in asked:
                    raise InvalidRequest(
                        f"no item before this one is a call with call_id {item.call_id!r}", param=f"{place}.call_id"
                    )
                drafts.append(Draft("tool", _parts(item.output, f"{place}.output"), item.call_id))
    if drafts[-1].role not in ("user", "tool"):
        raise InvalidRequest(
            f"the last item is from {drafts[-1].role!r}; it must be a user's message or a function_call_output",
            param=f"input.{len(items) - 1}",
        )
    return drafts


def _parts(content: list[Content], place: str) -> tuple[Text | ImageRef, ...]:
    return tuple(_part(part, f"{place}.{index}") for index, part in enumerate(content))


def _part(part: Content, place: str) -> Text | ImageRef:
    match part:
        case InputImage(image_url=url):
            options = ImageOptions(part.detail or "auto", part.min_pixels, part.max_pixels)
            return ImageRef(url, options, f"{place}.image_url", Pages(part.pages or (), f"{place}.pages"))
        case InputFile(file_data=str(data)):
            return ImageRef(as_url(data), param=f"{place}.file_data", pages=Pages(part.pages or (), f"{place}.pages"))
        case InputFile(file_url=str(url)):
            return ImageRef(url, param=f"{place}.file_url", pages=Pages(part.pages or (), f"{place}.pages"))
        case InputText() | OutputText():
            return Text(part.text)
        case InputFile():
            raise ValueError("the wire lets no file pass that has neither file_data nor file_url")


def _schema(request: ResponsesRequest) -> str | None:
    match request.text.format if request.text is not None else None:
        case AnyJsonFormat():
            return '{"type": "object"}'
        case SchemaFormat() as form:
            return json.dumps(form.schema_)
        case _:
            return None


def _tools(request: ResponsesRequest) -> ToolUse | None:
    choice = request.tool_choice
    if isinstance(choice, FlatChoice):
        return to_use(request.tools or (), "", choice.name, True, request.parallel_tool_calls)
    return to_use(request.tools or (), "", choice, False, request.parallel_tool_calls)
