"""A chat request in OpenAI's dialect as the call that the chat task understands. Pure."""

from __future__ import annotations

import json

from onsight.api.openai.tools import FunctionChoice, to_use
from onsight.api.openai.wire import (
    ChatMessage,
    ChatRequest,
    FilePart,
    ImageUrl,
    ImageUrlPart,
    InlineImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Part,
    TextFormat,
    TextPart,
    VideoUrlPart,
)
from onsight.api.services import ApiSettings
from onsight.core.generation import Sampling
from onsight.core.messages import Draft, ImageOptions, ImageRef, Text, VideoOptions, VideoRef
from onsight.core.pages import Pages
from onsight.core.tools import ToolCall, ToolUse
from onsight.media.data_url import as_url
from onsight.models.card import Defaults
from onsight.tasks.chat import ChatCall


def to_call(
    request: ChatRequest, settings: ApiSettings, request_id: str, defaults: Defaults, caller: str = ""
) -> ChatCall:
    """`request`, with the model's `defaults` where it names none, else the server's."""
    return ChatCall(
        drafts=tuple(_draft(message, f"messages.{index}") for index, message in enumerate(request.messages)),
        model=request.model,
        sampling=_sampling(request, settings, defaults),
        schema=_schema(request),
        n=request.n or 1,
        request_id=request_id,
        caller=caller,
        tools=_tools(request),
    )


def _draft(message: ChatMessage, place: str) -> Draft:
    role = "system" if message.role == "developer" else message.role
    parts = tuple(to_part(part, f"{place}.content.{index}") for index, part in enumerate(message.content))
    made = message.tool_calls or ()
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in made)
    return Draft(role, parts + calls, message.tool_call_id)


def _tools(request: ChatRequest) -> ToolUse | None:
    functions = [tool.function for tool in request.tools or ()]
    choice = request.tool_choice
    named = isinstance(choice, FunctionChoice)
    name = choice.function.name if isinstance(choice, FunctionChoice) else choice
    return to_use(functions, "function.", name, named, request.parallel_tool_calls)


def to_part(part: Part, place: str) -> Text | ImageRef | VideoRef:
    """A part as tasks know it; `place`: where it stands in the request."""
    match part:
        case TextPart():
            return Text(part.text)
        case ImageUrlPart(image_url=image):
            pages = Pages(image.pages or (), f"{place}.image_url.pages")
            return ImageRef(image.url, _options(image), f"{place}.image_url", pages)
        case InlineImagePart(image=inline):
            # Decoding belongs to the media door's threads, so bare base64 travels on as a data: URL.
            return ImageRef(as_url(inline.b64), param=f"{place}.image", pages=Pages())
        case FilePart(file=file):
            pages = Pages(file.pages or (), f"{place}.file.pages")
            return ImageRef(as_url(file.file_data), param=f"{place}.file.file_data", pages=pages)
        case VideoUrlPart(video_url=video):
            return VideoRef(video.url, VideoOptions(video.fps, video.max_frames), f"{place}.video_url")


def _options(image: ImageUrl) -> ImageOptions:
    return ImageOptions(image.detail or "auto", image.min_pixels, image.max_pixels)


def _sampling(request: ChatRequest, settings: ApiSettings, defaults: Defaults) -> Sampling:
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens or settings.max_tokens_default,
        temperature=first_given(request.temperature, defaults.temperature, settings.temperature_default),
        top_p=first_given(request.top_p, defaults.top_p, settings.top_p_default),
        top_k=request.top_k or 0,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        stop=tuple(request.stop or ()),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
    )


def first_given(asked: float | None, of_model: float | None, of_server: float) -> float:
    """What was asked for, else the model's default, else the server's."""
    if asked is not None:
        return asked
    return of_server if of_model is None else of_model


def _schema(request: ChatRequest) -> str | None:
    match request.response_format:
        case None | TextFormat():
            return None
        case JsonObjectFormat():
            return '{"type": "object"}'
        case JsonSchemaFormat(json_schema=form):
            return json.dumps(form.schema_)
