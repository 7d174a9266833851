"""Functions that a client offers to the model, and the model's calls of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NO_PARAMETERS = '{"type": "object", "properties": {}, "additionalProperties": false}'
"""The JSON Schema of a function that takes nothing."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters`: JSON Schema text of an object, kept by every call's arguments.

    `param` is where the parameters stood in the request, for error texts.
    """

    name: str
    description: str = ""
    parameters: str = NO_PARAMETERS
    param: str | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a tool is called: "auto" leaves it to the model, "required" makes the whole answer a call.

    `name`: with "required", the one tool that may be called.
    """

    mode: Literal["auto", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request offers. `parallel`: whether one answer may hold several calls; None where the family can."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice()
    parallel: bool | None = None

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that the choice leaves."""
        return tuple(tool for tool in self.tools if self.choice.name in (None, tool.name))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model made. `arguments`: JSON text."""

    id: str
    name: str
    arguments: str
