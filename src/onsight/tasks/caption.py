"""Caption: say what a picture shows, in a sentence, in some, or in many."""

from __future__ import annotations

from typing import Literal

from onsight.core.generation import Sampling
from onsight.tasks.asking import PictureCall, ask, find_prompt
from onsight.tasks.chat import Answer, ChatCall

Length = Literal["short", "normal", "long"]

_PROMPTS = {"short": ("caption_short", 64), "normal": ("caption", 256), "long": ("caption_long", 1024)}
"""Length -> the card's prompt, and most tokens."""


def prompt(call: PictureCall, length: Length = "normal") -> ChatCall:
    """The call that captions. Raises Unsupported for a model, or a length, that its card does not offer."""
    name, tokens = _PROMPTS[length]
    found = find_prompt(call.model, name, param="length")
    return ask(call, name, found.text, found, Sampling(max_tokens=tokens))


def read(answer: Answer) -> str:
    """The caption."""
    return answer.text.strip()
