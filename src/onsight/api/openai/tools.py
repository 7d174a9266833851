"""Tools as OpenAI's two dialects write them, and as the tasks understand them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from onsight.api.json_body import PART
from onsight.api.strict import AnySchema, Strict, wrong
from onsight.core.errors import InvalidRequest
from onsight.core.json_text import read_json
from onsight.core.tools import NO_PARAMETERS, Tool, ToolChoice, ToolUse

_ONLY_FUNCTIONS = "only functions can be called here"


def _check_parameters(schema: dict[str, object]) -> dict[str, object]:
    if schema.get("type") != "object":
        raise wrong("type", "the parameters' schema should be of type 'object', with a property for each parameter")
    return schema


def _check_arguments(text: str) -> str:
    try:
        value = read_json(text)
        # Half a character, written as an escape, could not be given to any tokenizer.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PydanticCustomError("wrong", "it should be the text of a JSON object, as the model wrote it")
    return text


def _check_kind(kind: object) -> object:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError("unsupported", "{why}", {"why": _ONLY_FUNCTIONS, "value": kind})
    return kind


def _check_choice(choice: object) -> object:
    """Name what is wrong with a choice before a union says it in many words."""
    if choice is None or choice in ("none", "auto", "required"):
        return choice
    if not isinstance(choice, dict):
        raise PydanticCustomError("wrong", "it should be none, auto, required or an object that names a function")
    if choice.get("type") != "function":
        kind = choice.get("type", "a choice without a type")
        raise PydanticCustomError("unsupported", "{why}", {"why": _ONLY_FUNCTIONS, "value": kind, "field": "type"})
    return choice


Kind = Annotated[Literal["function"], BeforeValidator(_check_kind)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Arguments = Annotated[str, AfterValidator(_check_arguments), Field(description="The text of a JSON object.")]
Mode = Literal["none", "auto", "required"]


class Function(Strict):
    """A function. Its parameters' schema is always enforced, whether `strict` asks for that or not."""

    name: Name
    description: str | None = None
    parameters: Annotated[AnySchema, AfterValidator(_check_parameters)] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """A tool in chat's form."""

    type: Kind
    function: Function


class FunctionName(Strict):
    name: Name


class FunctionChoice(Strict):
    """The choice of one function in chat's form."""

    type: Kind
    function: FunctionName


class CalledFunction(Strict):
    name: Name
    arguments: Arguments


class MessageToolCall(Strict):
    """A call in an assistant's message of the history."""

    id: str = Field(min_length=1)
    type: Kind
    function: CalledFunction


class _Kinded(Strict):
    type: Kind


class FlatTool(Function, _Kinded):
    """A tool in the form of `/v1/responses`."""


class FlatChoice(Strict):
    """The choice of one function in the form of `/v1/responses`."""

    type: Kind
    name: Name


def _form_of(choice: object) -> str:
    """The label of the union's member that a checked choice belongs to."""
    return f"{PART}mode" if isinstance(choice, str) else f"{PART}function"


_Form = Discriminator(_form_of)
_Mode = Annotated[Mode, Tag(f"{PART}mode")]
_Check = BeforeValidator(_check_choice)

ChatToolChoice = Annotated[Annotated[_Mode | Annotated[FunctionChoice, Tag(f"{PART}function")], _Form] | None, _Check]
FlatToolChoice = Annotated[Annotated[_Mode | Annotated[FlatChoice, Tag(f"{PART}function")], _Form] | None, _Check]


def to_use(
    functions: Sequence[Function], inner: str, choice: Mode | Name | None, named: bool, parallel: bool | None
) -> ToolUse | None:
    """What `functions` and the choice mean; None where nothing may be called.

    `inner`: the dialect's path from a tool, and from the choice, to a function's fields ("function." or nothing).
    `named`: `choice` is a function's name. Raises InvalidRequest for names that are there twice or not at all.
    """
    tools: dict[str, Tool] = {}
    for index, function in enumerate(functions):
        place = f"tools.{index}.{inner}"
        if function.name in tools:
            raise InvalidRequest(f"two tools are called {function.name!r}; rename one", param=f"{place}name")
        schema = NO_PARAMETERS if function.parameters is None else json.dumps(function.parameters)
        tools[function.name] = Tool(function.name, function.description or "", schema, f"{place}parameters")
    if named:
        if choice not in tools:
            offered = ", ".join(map(repr, tools)) or "none"
            raise InvalidRequest(
                f"no tool is called {choice!r}; the request's tools are {offered}", param=f"tool_choice.{inner}name"
            )
        return ToolUse(tuple(tools.values()), ToolChoice("required", choice), parallel)
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice is 'required', but the request has no tools; send some", param="tool_choice")
    if choice == "none" or not tools:
        return None
    return ToolUse(tuple(tools.values()), ToolChoice("required" if choice == "required" else "auto"), parallel)
