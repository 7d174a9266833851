"""What the tasks on one picture share: from a card's prompt and a client's picture to the call that chat answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from onsight.core.errors import Unsupported
from onsight.core.generation import Sampling
from onsight.core.messages import Draft, ImageRef, Text
from onsight.models.card import PROMPTS, Prompt
from onsight.tasks.chat import ChatCall
from onsight.tasks.roster import Loaded

_PLACE = re.compile(r"\{(target|x1|y1|x2|y2)\}")


@dataclass(frozen=True, slots=True)
class PictureCall:
    """A picture or a PDF, and the loaded model that shall look at it. `max_tokens`: None takes the task's own bound.

    `caller`: see `ChatCall`.
    """

    image: ImageRef
    model: Loaded
    max_tokens: int | None = None
    request_id: str = ""
    caller: str = ""


def find_prompt(model: Loaded, name: str, param: str = "model") -> Prompt:
    """The prompt called `name` on the model's card.

    Raises Unsupported that names the model when it was not made for the task, or `param` when only not in this way.
    """
    task = PROMPTS[name]
    if task not in model.card.capabilities:
        can = ", ".join(model.card.capabilities)
        raise Unsupported(f"model {model.name!r} was not made to {task}; it can {can}", param="model")
    prompt = model.card.prompt(name)
    if prompt is None:
        ways = ", ".join(way for way in model.card.prompts or () if PROMPTS[way] == task)
        raise Unsupported(f"model {model.name!r} knows no {name}; for this task it knows {ways}", param=param)
    return prompt


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its places filled in; what is filled in is never looked at again, whatever it holds."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


def ask(call: PictureCall, name: str, question: str | None, prompt: Prompt, sampling: Sampling) -> ChatCall:
    """The call that shows the picture and asks `question`; None leaves the question to the caller's `compose`.

    The answer is the likeliest one.
    """
    image = call.image
    return ChatCall(
        drafts=(Draft("user", (image,) if question is None else (image, Text(question))),),
        model=call.model.name,
        sampling=replace(sampling, temperature=0.0, max_tokens=call.max_tokens or sampling.max_tokens),
        schema=prompt.schema,
        request_id=call.request_id,
        caller=call.caller,
        task=PROMPTS[name],
        by_page=image.pages is not None,
    )
