"""OCR: the text in a picture as plain text, and nothing else."""

from __future__ import annotations

from onsight.core.generation import Sampling
from onsight.tasks.asking import PictureCall, ask, find_prompt
from onsight.tasks.chat import Answer, ChatCall

_MAX_TOKENS = 4096


def prompt(call: PictureCall) -> ChatCall:
    """The call that reads. Raises Unsupported for a model that was not made for it."""
    found = find_prompt(call.model, "ocr")
    return ask(call, "ocr", found.text, found, Sampling(max_tokens=_MAX_TOKENS))


def read(answer: Answer) -> str:
    """The text, its line breaks kept."""
    return answer.text.strip()
