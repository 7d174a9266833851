"""What a request to `/v1/responses` may look like: every field is honoured, refused by name, or says that it changes
nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from onsight.api.json_body import PART
from onsight.api.openai.tools import Arguments, FlatTool, FlatToolChoice, Name
from onsight.api.strict import PageSpans, Schema, Strict, never, only, wrong

_NOTHING_KEPT = "nothing is kept here; send the whole conversation as input"
_TEXT_ONLY = "answers are text and calls only"

ItemStatus = Annotated[Literal["in_progress", "completed", "incomplete"] | None, Field(description="Changes nothing.")]
ItemId = Annotated[str | None, Field(description="Changes nothing: items are told apart by their places.")]


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class InputImage(Strict):
    """A picture or a PDF, and how closely to look; `min_pixels` and `max_pixels` bound the area that the model sees."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1, description="An http(s) URL, or data:image/png;base64,...")
    pages: PageSpans | None = Field(None, description="Of a PDF: its pages to look at, like 1-3,7; all if unset.")
    detail: Literal["auto", "low", "high"] | None = None
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    file_id: Annotated[None, *never("no files are kept here; send image_url")] = None

    @model_validator(mode="after")
    def _ordered(self) -> InputImage:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise wrong("min_pixels", f"it is {self.min_pixels}, more than max_pixels, {self.max_pixels}")
        return self


class InputFile(Strict):
    """A PDF (or a picture), whose pages become pictures in order."""

    type: Literal["input_file"]
    file_data: str | None = Field(None, min_length=1, description="data:application/pdf;base64,..., or bare base64.")
    file_url: str | None = Field(None, min_length=1, description="An http(s) URL, instead of `file_data`.")
    pages: PageSpans | None = Field(None, description="The pages to look at, like 1-3,7; all of them if unset.")
    filename: str | None = Field(None, description="Changes nothing: what a file is, its bytes say.")
    file_id: Annotated[None, *never("no files are kept here; send file_data")] = None

    @model_validator(mode="after")
    def _one_source(self) -> InputFile:
        if (self.file_data is None) == (self.file_url is None):
            raise wrong("file_data", "send either it or file_url")
        return self


class OutputText(Strict):
    """What the model said before, sent back as it came."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[None] | None, only(_TEXT_ONLY, [])] = None
    logprobs: Annotated[list[None] | None, only("they belong to answers", [])] = None


_CONTENT = ("input_text", "input_image", "input_file", "output_text")
_SHOWN = (InputImage, InputFile)
_ITEMS = ("message", "function_call", "function_call_output")


def _check_kind(value: object, known: tuple[str, ...]) -> object:
    """Name what is wrong with a type before a union says it in many words."""
    if not isinstance(value, dict):
        raise PydanticCustomError("wrong", "it should be an object with a `type`")
    kind = value.get("type")
    if kind in known:
        return value
    why = f"send {', '.join(known[:-1])} or {known[-1]}"
    if isinstance(kind, str):
        raise PydanticCustomError("unsupported", "{why}", {"why": why, "value": kind[:60], "field": "type"})
    raise wrong("type", why)


def _label(value: object) -> str:
    """The label of the union's member that `value` belongs to, before and after validation."""
    match value:
        case {"type": str(kind)}:
            return PART + kind
        case InputText() | InputImage() | InputFile() | OutputText() | MessageItem() | CallItem() | ResultItem():
            return PART + value.type
        case _:
            return PART


Content = Annotated[
    Annotated[InputText, Tag(f"{PART}input_text")]
    | Annotated[InputImage, Tag(f"{PART}input_image")]
    | Annotated[InputFile, Tag(f"{PART}input_file")]
    | Annotated[OutputText, Tag(f"{PART}output_text")],
    Discriminator(_label),
    BeforeValidator(lambda value: _check_kind(value, _CONTENT)),
]


Contents = Annotated[
    list[Content],
    Field(min_length=1, fail_fast=True),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}, mode="validation"),
]


def _spread(item: object, field: str, kind: str) -> object:
    """The item whose `field`, if that is a text, is a list of one part."""
    if isinstance(item, dict) and isinstance(item.get(field), str):
        return {**item, field: [{"type": kind, "text": item[field]}]}
    return item


class MessageItem(Strict):
    """One turn; `developer` is another word for `system`. Pictures belong to the user's turns."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Contents
    id: ItemId = None
    status: ItemStatus = None
    phase: Annotated[None, *never("answers have one part")] = None

    @model_validator(mode="before")
    @classmethod
    def _as_parts(cls, item: object) -> object:
        said = isinstance(item, dict) and item.get("role") == "assistant"
        return _spread(item, "content", "output_text" if said else "input_text")

    @model_validator(mode="after")
    def _fits_its_role(self) -> MessageItem:
        if self.role == "user" and not any(isinstance(part, _SHOWN) or part.text for part in self.content):
            raise wrong("content", "it is empty; send a text or a picture")
        for index, part in enumerate(self.content):
            said = isinstance(part, OutputText)
            if said != (self.role == "assistant"):
                kind = "output_text" if self.role == "assistant" else "input_text"
                raise wrong(f"content.{index}.type", f"a message from {self.role} holds {kind}")
            if isinstance(part, _SHOWN) and self.role != "user":
                raise wrong(f"content.{index}", f"a message from {self.role} holds no picture; put it into a user's")
        return self


class CallItem(Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: Name
    arguments: Arguments
    # An answer of ours that an SDK sends back carries these as null.
    async_: Annotated[None, *never("answers wait for no function")] = None
    caller: Annotated[None, *never("functions are called by the model alone")] = None
    namespace: Annotated[None, *never("functions have a name only")] = None
    id: ItemId = None
    status: ItemStatus = None


class ResultItem(Strict):
    """What the called function answered: a text, or texts and pictures."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Contents
    id: ItemId = None
    status: ItemStatus = None

    @model_validator(mode="before")
    @classmethod
    def _as_parts(cls, item: object) -> object:
        return _spread(item, "output", "input_text")

    @model_validator(mode="after")
    def _holds_input(self) -> ResultItem:
        for index, part in enumerate(self.output):
            if isinstance(part, OutputText):
                raise wrong(f"output.{index}.type", "a function's output holds input_text and input_image")
        return self


def _check_item(value: object) -> object:
    """An item without a type that has a role is a message."""
    if isinstance(value, dict) and "type" not in value and "role" in value:
        value = {**value, "type": "message"}
    return _check_kind(value, _ITEMS)


Item = Annotated[
    Annotated[MessageItem, Tag(f"{PART}message")]
    | Annotated[CallItem, Tag(f"{PART}function_call")]
    | Annotated[ResultItem, Tag(f"{PART}function_call_output")],
    Discriminator(_label),
    BeforeValidator(_check_item),
]


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) and value else value


class PlainFormat(Strict):
    type: Literal["text"]


class AnyJsonFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    """The answer's form. It is always enforced, whether `strict` asks for that or not."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None
    description: str | None = Field(None, description="Changes nothing: the model is held to the form, not told of it.")


def _format_label(value: object) -> str:
    match value:
        case {"type": str(kind)}:
            return PART + kind
        case PlainFormat() | AnyJsonFormat() | SchemaFormat():
            return PART + value.type
        case _:
            return PART


Format = Annotated[
    Annotated[PlainFormat, Tag(f"{PART}text")]
    | Annotated[AnyJsonFormat, Tag(f"{PART}json_object")]
    | Annotated[SchemaFormat, Tag(f"{PART}json_schema")],
    Discriminator(_format_label),
    BeforeValidator(lambda value: _check_kind(value, ("text", "json_object", "json_schema"))),
]


class TextOptions(Strict):
    format: Format | None = None
    verbosity: Annotated[None, *never("ask for it in a message")] = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Annotated[Literal[False] | None, only("events are not padded", False)] = None


class _ChangesNothing(Strict):
    """Fields that rightly change nothing here: they group requests, or ask for what is the case anyway."""

    user: str | None = Field(None, description="Changes nothing: users are not told apart.")
    safety_identifier: str | None = Field(None, description="Changes nothing: users are not told apart.")
    prompt_cache_key: str | None = Field(None, description="Changes nothing: every prompt may be reused.")
    metadata: dict[str, str] | None = Field(None, description="Comes back with the answer and changes nothing else.")
    store: Annotated[Literal[False] | None, only(_NOTHING_KEPT, False)] = Field(
        None, description="Changes nothing: nothing is kept."
    )
    background: Annotated[Literal[False] | None, only(_NOTHING_KEPT, False)] = None
    include: Annotated[list[None] | None, only("answers hold all there is", [])] = None
    truncation: Annotated[
        Literal["disabled"] | None, only("a conversation that is too long is refused, not cut", "disabled")
    ] = None
    service_tier: Annotated[Literal["auto", "default"] | None, only("there is one tier", "auto", "default")] = None
    top_logprobs: Annotated[Literal[0] | None, only("ask for them at /v1/chat/completions", 0)] = None


class _NotOffered(Strict):
    """Fields that are refused by name; null is the same as leaving them out."""

    previous_response_id: Annotated[None, *never(_NOTHING_KEPT)] = None
    conversation: Annotated[None, *never(_NOTHING_KEPT)] = None
    prompt: Annotated[None, *never("no prompts are kept here; send instructions and input")] = None
    prompt_cache_retention: Annotated[None, *never("nothing is promised to stay cached")] = None
    reasoning: Annotated[None, *never("no model here reasons apart")] = None
    max_tool_calls: Annotated[None, *never("no tool is run here")] = None
    context_management: Annotated[None, *never("a conversation that is too long is refused, not cut")] = None


class ResponsesRequest(_ChangesNothing, _NotOffered):
    """The body of `POST /v1/responses`."""

    input: Annotated[
        list[Item],
        Field(min_length=1, fail_fast=True),
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
    ]
    model: str | None = Field(None, description="Left out, it means the only chat model.")
    instructions: str | None = Field(None, description="A system message before the input.")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(
        None, ge=1, description="Most tokens of an answer; 512 unless the server says otherwise."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 is greedy; 0.7 unless the server says otherwise."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextOptions | None = None
    tools: list[FlatTool] | None = Field(
        None, max_length=128, fail_fast=True, description="Functions that the model may call."
    )
    tool_choice: FlatToolChoice = Field(
        None, description="auto where there are tools; `none` hides them from the model."
    )
    parallel_tool_calls: bool | None = Field(None, description="Left out, it is what the model's family can.")

    @model_validator(mode="after")
    def _fields_agree(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "it needs `stream: true`")
        return self
