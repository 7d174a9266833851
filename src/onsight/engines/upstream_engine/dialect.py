"""What each kind of upstream server understands beyond OpenAI's own fields, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is spoken to. `name`: what it calls itself in `owned_by` of /v1/models.

    `neutral`: fields that switch off what it would add to sampling by its own defaults. `top_k`, `detail`: whether it
    honours that option. `images_first`: it reuses prompts only from their start on, so that pictures should stand
    there. `least_top`: the fewest `top_logprobs` with which it reports any. `names_images`: it keeps pictures by a name
    that we give them. `counts_text`: it can count a prompt's words. `named_choice`: it heeds a `tool_choice` by name.
    """

    name: str
    neutral: Mapping[str, object] = field(default_factory=dict)
    top_k: bool = False
    detail: bool = False
    images_first: bool = False
    least_top: int = 0
    names_images: bool = False
    counts_text: bool = False
    named_choice: bool = True


_PENALISED = 65_536
"""Tokens of a conversation that llama.cpp's penalties look back on; it knows no word for all of them."""

OPENAI = Dialect("openai", detail=True)

LLAMA = Dialect(
    "llamacpp",
    neutral={"min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "repeat_last_n": _PENALISED, "cache_prompt": True},
    top_k=True,
    images_first=True,
    least_top=1,
    counts_text=True,
    named_choice=False,
)

VLLM = Dialect("vllm", neutral={"min_p": 0.0, "repetition_penalty": 1.0}, top_k=True, names_images=True)


def dialect_of(owner: str) -> Dialect:
    """The dialect of a server whose models are `owned_by` that; a stranger is trusted with OpenAI's fields alone."""
    return next((one for one in (LLAMA, VLLM) if one.name == owner), OPENAI)
