"""A checkpoint's chat template, rendered so that nobody's text can pass for the template's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

import jinja2
import jinja2.meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from onsight.core.errors import InvalidRequest, StartError
from onsight.core.messages import Image, Message, Text, Video
from onsight.core.tools import Tool, ToolCall
from onsight.engines.torch_engine.loading import JsonObject, read_json, read_optional_json
from onsight.engines.torch_engine.tool_syntax import PLAIN, ToolSyntax, arguments, describe
from onsight.engines.torch_engine.turns import Piece, TemplateText, Turn, VideoWords

_STAND_IN = "\ue000{index}\ue001"
_STAND_IN_PATTERN = "\ue000(\\d+)\ue001"
"""Private-use characters that no template writes; a user's text never passes through the template, so may hold them."""

_NUMBER = "{number}"


class ChatTemplate:
    """Turns messages into pieces in the order in which the model reads them."""

    def __init__(
        self,
        folder: Path,
        image_text: str,
        source: str | None = None,
        video: VideoWords | None = None,
        syntax: ToolSyntax = PLAIN,
    ) -> None:
        """Compile `source`, else what `folder` holds; it writes `image_text` for a picture. Raises StartError.

        `syntax`: how tools and calls are written, by the template itself where it can, else by us.

        With `{number}` in `image_text`, turns are plain strings in which we write it, a line for each picture, and
        every stretch of text begins with the tokenizer's opening token: such models' text is tokenised piece by piece.
        """
        source = source or find_template(folder)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _as_json
        try:
            self._template = environment.from_string(source)
            self._filmed = environment.from_string((video and video.template) or source)
            unset = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise StartError(f"{folder}: the chat template cannot be read: {error}") from None
        self._syntax = syntax
        self._takes_tools = syntax.in_template and "tools" in unset
        table = read_optional_json(folder / "tokenizer_config.json")
        self._tokens = _special_tokens(table)
        self._numbered = image_text if _NUMBER in image_text else None
        opens = self._numbered is not None and table.get("add_bos_token", True)
        self._opening = self._tokens.get("bos_token", "") if opens else ""
        video_pattern = re.escape(video.text) if video else "(?!)"
        self._split = re.compile(f"{_STAND_IN_PATTERN}|({_pattern(image_text)})|({video_pattern})")

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Piece]:
        """The whole prompt up to where the answer begins. Raises InvalidRequest when the template refuses it."""
        texts: list[Text | TemplateText] = []
        own = self._takes_tools
        spoken = [_spoken(message) for message in messages] if own else self._syntax.write(messages, tools)
        turns = [_turn(turn, texts) for turn in spoken]
        if self._numbered is not None:
            turns = _as_strings(turns, self._numbered)
        template = self._filmed if any(message.videos for message in messages) else self._template
        told = [_stand_in(Text(describe(tool)), texts) for tool in tools] if own else []
        try:
            prompt = template.render(messages=turns, tools=told or None, add_generation_prompt=True, **self._tokens)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        images = [image for message in messages for image in message.images]
        videos = [video for message in messages for video in message.videos]
        pieces = self._cut(prompt, texts, images, videos)
        wanted = [sum(isinstance(text, Text) for text in texts), len(images), len(videos)]
        if wanted != [sum(isinstance(piece, kind) for piece in pieces) for kind in (Text, Image, Video)]:
            raise InvalidRequest("the model's chat template has no place for one of these messages", param="messages")
        return pieces

    def _cut(
        self, prompt: str, texts: list[Text | TemplateText], images: list[Image], videos: list[Video]
    ) -> list[Piece]:
        pieces: list[Piece] = [TemplateText(self._opening)] if self._opening else []
        waiting, unseen = iter(images), iter(videos)
        end = 0
        for match in self._split.finditer(prompt):
            if match.start() > end:
                pieces.append(TemplateText(prompt[end : match.start()]))
            end = match.end()
            found: Piece | None
            if match[1] is not None:
                found = texts[int(match[1])]
            else:
                found = next(unseen, None) if match[2] is None else next(waiting, None)
            if found is not None:
                pieces.append(found)
            if self._opening and isinstance(found, Image):
                pieces.append(TemplateText(self._opening))
        if end < len(prompt):
            pieces.append(TemplateText(prompt[end:]))
        return pieces


def _spoken(message: Message) -> Turn:
    """A message for a template that writes calls and results itself."""
    calls = tuple(part for part in message.parts if isinstance(part, ToolCall))
    said = tuple(part for part in message.parts if not isinstance(part, ToolCall))
    return Turn(message.role, () if calls and all(part == Text("") for part in said) else said, calls)


def _turn(turn: Turn, texts: list[Text | TemplateText]) -> dict[str, object]:
    """A turn as templates expect it, with every text moved to `texts` and a stand-in left behind."""
    if turn.calls and not turn.pieces:
        return {"role": turn.role, "content": "", "tool_calls": _calls(turn, texts)}
    content: list[dict[str, str]] = []
    for piece in turn.pieces or (Text(""),):
        if isinstance(piece, Image):
            content.append({"type": "image"})
        elif isinstance(piece, Video):
            content.append({"type": "video"})
        else:
            content.append({"type": "text", "text": _stand_in(piece, texts)})
    made: dict[str, object] = {"role": turn.role, "content": content}
    return made | {"tool_calls": _calls(turn, texts)} if turn.calls else made


def _calls(turn: Turn, texts: list[Text | TemplateText]) -> list[dict[str, object]]:
    functions = [
        {"name": _stand_in(Text(call.name), texts), "arguments": _stand_in(Text(arguments(call)), texts)}
        for call in turn.calls
    ]
    return [{"type": "function", "function": function} for function in functions]


def _stand_in(text: Text | TemplateText, texts: list[Text | TemplateText]) -> str:
    texts.append(text)
    return _STAND_IN.format(index=len(texts) - 1)


def _as_json(value: object, indent: int | None = None) -> str:
    """The filter `tojson`. A stand-in stays itself: it stands for JSON, a tool's or a call's arguments."""
    if isinstance(value, str) and re.fullmatch(_STAND_IN_PATTERN, value):
        return value
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _as_strings(turns: list[dict[str, object]], image_text: str) -> list[dict[str, object]]:
    """The turns with each content as one string, pictures as numbered lines."""
    numbers = count(1)
    made: list[dict[str, object]] = []
    for turn in turns:
        parts = turn["content"]
        text = ""
        for part in parts if isinstance(parts, list) else []:
            text += f"{image_text.format(number=next(numbers))}\n" if part["type"] == "image" else part["text"]
        made.append({"role": turn["role"], "content": text})
    return made


def _pattern(image_text: str) -> str:
    return r"\d+".join(re.escape(part) for part in image_text.split(_NUMBER))


def _refuse(message: str) -> None:
    """What templates call when roles come in an order that they do not know."""
    raise jinja2.TemplateError(message)


def find_template(folder: Path) -> str:
    """The template (Jinja), wherever checkpoints keep it. Raises StartError when there is none."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = read_optional_json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    read_json(folder / "config.json")
    raise StartError(
        f"{folder} holds no chat template (chat_template.jinja, chat_template.json or in tokenizer_config.json)"
    )


def _special_tokens(table: JsonObject) -> dict[str, str]:
    """`bos_token` and the like, which some templates write."""
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = table.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
