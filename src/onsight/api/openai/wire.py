"""What a chat request may look like in OpenAI's dialect: every field is honoured, refused by name, or listed in
`_ChangesNothing`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from onsight.api.json_body import PART
from onsight.api.openai.tools import ChatToolChoice, FunctionTool, MessageToolCall
from onsight.api.strict import AnySchema, PageSpans
from onsight.api.strict import Strict as _Strict
from onsight.api.strict import never as _never
from onsight.api.strict import only as _only
from onsight.api.strict import wrong as _wrong

_OLD_CALLS = "send tools, and answer calls by messages from 'tool'"
_TEXT_ONLY = "answers are text only"


class ImageUrl(_Strict):
    """A picture or a PDF, and how closely to look; `min_pixels` and `max_pixels` bound the area that the model sees."""

    url: str = Field(min_length=1, description="An http(s) URL, data:image/png;base64,... or data:application/pdf;...")
    detail: Literal["auto", "low", "high"] | None = None
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    pages: PageSpans | None = Field(None, description="Of a PDF: its pages to look at, like 1-3,7; all if unset.")

    @model_validator(mode="after")
    def _ordered(self) -> ImageUrl:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise _wrong("min_pixels", f"it is {self.min_pixels}, more than max_pixels, {self.max_pixels}")
        return self


class VideoUrl(_Strict):
    """A video, and which of its frames to look at; left out, both are what the model was made for."""

    url: str = Field(min_length=1, description="An http(s) URL, or data:video/mp4;base64,...")
    fps: float | None = Field(None, gt=0, le=1000, description="Frames looked at for each second of it.")
    max_frames: int | None = Field(None, ge=1, description="Most frames looked at.")


class InlineImage(_Strict):
    """A picture's file as base64."""

    b64: str = Field(min_length=1)


class FileObject(_Strict):
    """A PDF (or a picture), whose pages become pictures in order."""

    file_data: str = Field(min_length=1, description="data:application/pdf;base64,..., bare base64, or an http(s) URL.")
    pages: PageSpans | None = Field(None, description="The pages to look at, like 1-3,7; all of them if unset.")
    filename: str | None = Field(None, description="Changes nothing: what a file is, its bytes say.")
    file_id: Annotated[None, *_never("files are not stored; send `file_data`")] = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrlPart(_Strict):
    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl,
        BeforeValidator(
            lambda value: {"url": value} if isinstance(value, str) else value, json_schema_input_type=ImageUrl | str
        ),
    ]


class VideoUrlPart(_Strict):
    type: Literal["video_url"]
    video_url: Annotated[
        VideoUrl,
        BeforeValidator(
            lambda value: {"url": value} if isinstance(value, str) else value, json_schema_input_type=VideoUrl | str
        ),
    ]


class InlineImagePart(_Strict):
    type: Literal["image"]
    image: InlineImage


class FilePart(_Strict):
    type: Literal["file"]
    file: FileObject


_PARTS = ("text", "image_url", "image", "file", "video_url")
_PARTS_ELSEWHERE = ("video", "input_audio", "audio", "refusal", "input_image", "input_text")
_PARTS_HERE = "text, image_url, file, image or video_url"


def _check_kind(value: object) -> object:
    """Name what is wrong with a part's type before a union of parts says it in many words."""
    if not isinstance(value, dict):
        raise PydanticCustomError("wrong", "it should be an object with a `type`")
    kind = value.get("type")
    if kind in _PARTS:
        return value
    if kind in _PARTS_ELSEWHERE:
        raise PydanticCustomError("unsupported", "{why}", {"why": f"send {_PARTS_HERE} parts", "field": kind})
    raise _wrong("type", f"it should be {_PARTS_HERE}")


def _kind_of(value: object) -> str:
    """The label of the union's member that `value` belongs to, before and after validation."""
    match value:
        case {"type": str(kind)}:
            return PART + kind
        case TextPart() | ImageUrlPart() | InlineImagePart() | FilePart() | VideoUrlPart():
            return PART + value.type
        case _:
            return PART


Part = Annotated[
    Annotated[TextPart, Tag(f"{PART}text")]
    | Annotated[ImageUrlPart, Tag(f"{PART}image_url")]
    | Annotated[InlineImagePart, Tag(f"{PART}image")]
    | Annotated[FilePart, Tag(f"{PART}file")]
    | Annotated[VideoUrlPart, Tag(f"{PART}video_url")],
    Discriminator(_kind_of),
    BeforeValidator(_check_kind),
]


def _check_role(role: object) -> object:
    if role == "function":
        raise PydanticCustomError("unsupported", "{why}", {"why": _OLD_CALLS, "value": role})
    return role


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check_content(content: object) -> object:
    if content is None or content == []:
        raise PydanticCustomError("wrong", "it should be a text or a list of parts, and not empty")
    return content


class ChatMessage(_Strict):
    """One turn. Pictures and videos belong to the user's turns; `developer` is another word for `system`.

    An assistant's turn may hold calls, with content or without; a tool's turn answers the one of `tool_call_id`.
    """

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_check_role)]
    content: Annotated[
        list[Part],
        Field(fail_fast=True),
        BeforeValidator(_check_content),
        BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
    ]
    name: str | None = Field(None, description="Changes nothing: models here know no names of speakers.")
    # An answer of ours, sent back as part of the history, carries these as null.
    refusal: Annotated[None, *_never(_TEXT_ONLY)] = None
    annotations: Annotated[None, *_never(_TEXT_ONLY)] = None
    audio: Annotated[None, *_never(_TEXT_ONLY)] = None
    function_call: Annotated[None, *_never(_OLD_CALLS)] = None
    tool_calls: Annotated[list[MessageToolCall] | None, Field(min_length=1, fail_fast=True)] = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_may_stand_alone(cls, value: object) -> object:
        """A message that calls need not say anything besides."""
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _fits_its_role(self) -> ChatMessage:
        if self.tool_calls is not None and self.role != "assistant":
            raise _wrong("tool_calls", f"a message from {self.role} cannot call; only one from assistant can")
        if self.role == "tool" and not self.tool_call_id:
            raise _wrong("tool_call_id", "it is missing; name the call that this message answers")
        if self.role != "tool" and self.tool_call_id is not None:
            raise _wrong("tool_call_id", f"a message from {self.role} answers no call; only one from tool does")
        media = any(not isinstance(part, TextPart) for part in self.content)
        if media and self.role != "user":
            raise _wrong(
                "content", f"a message from {self.role} cannot hold a picture or a video; put it into a user message"
            )
        # An empty answer may stand in a history; an empty question asks nothing.
        if (
            not media
            and self.role == "user"
            and not any(part.text for part in self.content if isinstance(part, TextPart))
        ):
            raise _wrong("content", "it is empty; send a text, a picture or a video")
        return self


class StreamOptions(_Strict):
    """`include_usage`: one more chunk, without choices, tells what the request cost."""

    include_usage: bool = False
    include_obfuscation: Annotated[Literal[False] | None, _only("chunks are not padded", False)] = None


class JsonSchema(_Strict):
    """The answer's form. It is always enforced, whether `strict` asks for that or not."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    schema_: AnySchema = Field(alias="schema")
    strict: bool | None = None
    description: str | None = Field(None, description="Changes nothing: the model is held to the form, not told of it.")


class TextFormat(_Strict):
    type: Literal["text"]


class JsonObjectFormat(_Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format_of(value: object) -> str:
    match value:
        case {"type": str(kind)}:
            return PART + kind
        case TextFormat() | JsonObjectFormat() | JsonSchemaFormat():
            return PART + value.type
        case _:
            return PART


def _check_format(value: object) -> object:
    match value:
        case None | {"type": "text" | "json_object" | "json_schema"}:
            return value
        case dict():
            raise _wrong("type", "it should be text, json_object or json_schema")
        case _:
            raise PydanticCustomError("wrong", "it should be an object with a `type`")


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(f"{PART}text")]
    | Annotated[JsonObjectFormat, Tag(f"{PART}json_object")]
    | Annotated[JsonSchemaFormat, Tag(f"{PART}json_schema")],
    Discriminator(_format_of),
]


class _ChangesNothing(_Strict):
    """OpenAI's fields that rightly change nothing here, in the one place where they are listed.

    They name the user, group requests in OpenAI's dashboard, or ask for what is the case anyway.
    """

    user: str | None = Field(None, description="Changes nothing: users are not told apart.")
    safety_identifier: str | None = Field(None, description="Changes nothing: users are not told apart.")
    metadata: dict[str, str] | None = Field(None, description="Changes nothing: answers are not stored.")
    prompt_cache_key: str | None = Field(None, description="Changes nothing: every prompt may be reused.")
    store: Annotated[Literal[False] | None, _only("answers are not stored", False)] = Field(
        None, description="Changes nothing: answers are not stored, and this says so."
    )
    service_tier: Annotated[Literal["auto", "default"] | None, _only("there is one tier", "auto", "default")] = Field(
        None, description="Changes nothing: there is one tier."
    )
    modalities: Annotated[list[Literal["text"]] | None, _only(_TEXT_ONLY, ["text"])] = Field(
        None, description="Changes nothing: answers are text anyway."
    )


class _NotOffered(_Strict):
    """OpenAI's fields that are refused by name; null is the same as leaving them out."""

    functions: Annotated[None, *_never(_OLD_CALLS)] = None
    function_call: Annotated[None, *_never(_OLD_CALLS)] = None
    audio: Annotated[None, *_never(_TEXT_ONLY)] = None
    prediction: Annotated[None, *_never("answers are not predicted")] = None
    reasoning_effort: Annotated[None, *_never("no model here reasons apart")] = None
    verbosity: Annotated[None, *_never("ask for it in a message")] = None
    logit_bias: Annotated[None, *_never("tokens cannot be weighted one by one")] = None
    web_search_options: Annotated[None, *_never("nothing is searched")] = None
    prompt_cache_retention: Annotated[None, *_never("nothing is promised to stay cached")] = None


class ChatRequest(_ChangesNothing, _NotOffered):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    model: str | None = Field(None, description="Left out, it means the only chat model.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128, description="How many answers.")
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens of an answer; 512 unless the server says otherwise."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 is greedy; 0.7 unless the server says otherwise."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=1 << 31, description="0 is off. Not one of OpenAI's fields.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]] | None,
        Field(max_length=16, fail_fast=True),
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str] | None
        ),
    ] = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = Field(
        None, description="Unless streamed, n x max_tokens x (1 + top_logprobs) of them may be at most 1,000,000."
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[ResponseFormat | None, BeforeValidator(_check_format)] = None
    coordinates: Literal["original"] | None = Field(
        None,
        description="`original`: places in the answer are in pixels of the one picture that was sent, not in the"
        " model's own space. Not one of OpenAI's fields.",
    )
    tools: list[FunctionTool] | None = Field(
        None, min_length=1, max_length=128, fail_fast=True, description="Functions that the model may call."
    )
    tool_choice: ChatToolChoice = Field(
        None, description="auto where there are tools; `none` hides them from the model."
    )
    parallel_tool_calls: bool | None = Field(None, description="Left out, it is what the model's family can.")

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "it needs `stream: true`")
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs", "it needs `logprobs: true`")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and self.max_tokens != self.max_completion_tokens:
            raise _wrong("max_completion_tokens", f"it is {both[1]}, but max_tokens is {both[0]}; send one of them")
        return self
