"""One step of a screen agent: a task and a screenshot in, one action with pixels of that screenshot out.

    python examples/navigate.py --task "Open the settings" screenshot.png

It speaks to any server of OpenAI's dialect; on Onsight the action is held to the schemas below, whatever the model
says. Made for Holo1.5 (`onsight serve Hcompany/Holo1.5-7B`); other models that call tools work too.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
from PIL import Image

PATCH_PX = 28
"""Qwen2.5-VL, and so Holo1.5, sees pictures whose sides are multiples of this."""

PROMPT = """You operate a computer for its user. You are given a task, what was done so far, and a screenshot.
Do the one next thing that brings the task forward:
- click what you mean, in its middle;
- type into a field that has the focus;
- scroll when what you look for is not on the screen;
- answer when the task is done, or when it is a question that the screen answers."""


@dataclass(frozen=True)
class Action:
    """What to do next: the action's name, its arguments, and where, in pixels of the screenshot, if it has a place."""

    name: str
    arguments: dict[str, object]
    place: tuple[float, float] | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the next action as a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("screenshot", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--done", action="append", default=[], help="an earlier action's line; repeatable")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="none")
    parser.add_argument("--max-pixels", type=int, default=1_003_520, help="area at which the screen is shown")
    given = parser.parse_args(arguments)
    client = openai.OpenAI(base_url=f"{given.url}/v1", api_key=given.key)
    with Image.open(given.screenshot) as file:
        action = step(client, file.convert("RGB"), given.task, given.done, given.max_pixels)
    print(json.dumps({"action": action.name, **action.arguments, "pixel": action.place}, ensure_ascii=False))


def step(client: openai.OpenAI, screen: Image.Image, task: str, done: Sequence[str], max_pixels: int) -> Action:
    """Ask for the next action. The model's coordinates come back as pixels of `screen`."""
    model = client.models.list().data[0]
    thousandths = (model.model_extra or {}).get("convention") == "0..1000"
    # Shown at a size that the model sees as it is, its pixels are the model's own.
    shown = screen.resize(shown_size(*screen.size, max_pixels), Image.Resampling.LANCZOS)
    width, height = (1001, 1001) if thousandths else shown.size
    said = f"Task: {task}\nDone so far:\n" + ("\n".join(done) or "nothing")
    answer = client.chat.completions.create(
        model=model.id,
        messages=[
            {"role": "system", "content": PROMPT},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url(shown)}},
                    {"type": "text", "text": said},
                ],
            },
        ],
        tools=actions(width, height),
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=512,
    )
    calls = answer.choices[0].message.tool_calls or []
    if answer.choices[0].finish_reason != "tool_calls" or calls[0].type != "function":
        raise SystemExit(f"the answer was cut off ({answer.choices[0].finish_reason}); allow more tokens")
    name, arguments = calls[0].function.name, json.loads(calls[0].function.arguments)
    if "x" not in arguments:
        return Action(name, arguments, None)
    scale_x, scale_y = (1000, 1000) if thousandths else shown.size
    return Action(name, arguments, (arguments["x"] * screen.width / scale_x, arguments["y"] * screen.height / scale_y))


def shown_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The size, in multiples of `PATCH_PX` and of at most `max_pixels`, at which a screen of `width` x `height` px
    is shown."""
    scale = min(1.0, (max_pixels / (width * height)) ** 0.5)
    across, down = (max(int(side * scale) // PATCH_PX, 2) * PATCH_PX for side in (width, height))
    return across, down


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def actions(width: int, height: int) -> list[openai.types.chat.ChatCompletionToolParam]:
    """The actions as tools; coordinates that lie outside `width` x `height` cannot be written."""
    place = {
        "element": text("what is meant, in a few words"),
        "x": {"type": "integer", "minimum": 0, "maximum": width - 1},
        "y": {"type": "integer", "minimum": 0, "maximum": height - 1},
    }
    direction = {"enum": ["up", "down", "left", "right"]}
    return [
        tool("click", "Click an element", place),
        tool("type", "Type into the field that has the focus", {"text": text("what to type")}),
        tool("scroll", "Scroll the page", {"direction": direction}),
        tool("answer", "End the task and tell the user", {"text": text("what to tell")}),
    ]


def text(description: str) -> dict[str, object]:
    # With a bound the JSON comes to its end whatever the model would rather go on saying.
    return {"type": "string", "description": description, "maxLength": 200}


def tool(name: str, description: str, fields: dict[str, object]) -> openai.types.chat.ChatCompletionToolParam:
    parameters = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    function = {"name": name, "description": description, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}  # type: ignore[typeddict-item]


if __name__ == "__main__":
    main()
