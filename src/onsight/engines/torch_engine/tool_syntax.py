"""How a family's models are told of tools and how they write a call, and a conversation written in that form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from onsight.core.messages import Message, Text
from onsight.core.tools import Tool, ToolCall
from onsight.engines.torch_engine.turns import Piece, TemplateText, Turn


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """A family's own form; a call is `opens`, a line with a JSON object of name and arguments, `closes`.

    `before`, `after`: what the system turn says around the tools, which stand in it as one JSON object a line.
    `opening`: the system turn's first words where the client sent no such turn. `in_template`: a checkpoint's chat
    template that takes `tools` writes this very form, and is followed. `parallel`: made for several calls an answer.
    """

    before: str
    after: str
    opening: str = ""
    in_template: bool = False
    parallel: bool = False
    opens: str = "<tool_call>"
    closes: str = "</tool_call>"
    result_opens: str = "<tool_response>"
    result_closes: str = "</tool_response>"

    def write(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
        """Turns for a template that knows no tools: they stand in the system turn, calls and results are text."""
        turns: list[Turn] = []
        for results, group in groupby(messages, key=lambda message: message.role == "tool"):
            if results:
                turns.append(Turn("user", _joined([self._result(message) for message in group])))
            else:
                turns += [Turn(message.role, self._said(message)) for message in group]
        if not tools:
            return turns
        listed = Text("\n".join(describe(tool) for tool in tools))
        told: tuple[Piece, ...] = (TemplateText(self.before), listed, TemplateText(self.after))
        if turns and turns[0].role == "system":
            return [Turn("system", (*turns[0].pieces, TemplateText("\n\n"), *told)), *turns[1:]]
        return [Turn("system", (TemplateText(self.opening), *told) if self.opening else told), *turns]

    def _said(self, message: Message) -> tuple[Piece, ...]:
        said = tuple(part for part in message.parts if not isinstance(part, ToolCall))
        calls = [self._call(part) for part in message.parts if isinstance(part, ToolCall)]
        return _joined([said, *calls] if any(part != Text("") for part in said) or not calls else calls)

    def _call(self, call: ToolCall) -> tuple[Piece, ...]:
        written = f'{{"name": {json.dumps(call.name)}, "arguments": {arguments(call)}}}'
        return TemplateText(f"{self.opens}\n"), Text(written), TemplateText(f"\n{self.closes}")

    def _result(self, message: Message) -> tuple[Piece, ...]:
        parts = tuple(part for part in message.parts if not isinstance(part, ToolCall))
        return TemplateText(f"{self.result_opens}\n"), *parts, TemplateText(f"\n{self.result_closes}")


def _joined(groups: Sequence[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """The groups' pieces with a line break between the groups."""
    pieces: list[Piece] = []
    for group in groups:
        pieces += [TemplateText("\n"), *group] if pieces else group
    return tuple(pieces)


def describe(tool: Tool) -> str:
    """A tool as models are told of it, in OpenAI's form: one JSON object on one line."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    if not tool.description:
        del function["description"]
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def arguments(call: ToolCall) -> str:
    """A call's arguments as this engine's models write JSON."""
    return json.dumps(json.loads(call.arguments), ensure_ascii=False)


# Qwen's own words, letter by letter: its models were trained on them.
HERMES = ToolSyntax(
    before=(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    ),
    after=(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within"
        ' <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments":'
        " <args-json-object>}\n</tool_call>"
    ),
    opening="You are a helpful assistant.\n\n",
    in_template=True,
    parallel=True,
)

PLAIN = ToolSyntax(
    before="You may call one of these functions:\n",
    after=(
        '\nTo call one, write:\n<tool_call>\n{"name": "the function\'s name", "arguments": {its arguments as JSON}}\n'
        "</tool_call>\nIts result comes back within <tool_response></tool_response>."
    ),
)
"""For families that were trained on no form of their own; the grammar keeps them to it."""
