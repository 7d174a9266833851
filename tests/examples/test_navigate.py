"""The navigation example runs against a real server with a tiny random Qwen2.5-VL, and OpenAI's SDK reads its calls."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from examples.navigate import actions, shown_size, step
from PIL import Image, ImageDraw

from tests.servers import Served, served
from tests.tiny_models import write_qwen

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
MAX_PIXELS = 28 * 28 * 60
NAMES = {"click", "type", "scroll", "answer"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_qwen(tmp_path_factory.mktemp("models") / "qwen", context=4096)
    with served(str(folder), "--threads", "1", "--max-num-seqs", "2") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def screen(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).rectangle((width // 4, height // 4, width // 2, height // 2), fill="red")
    return picture


def test_it_prints_one_action(server: Served, tmp_path: Path) -> None:
    screen(320, 200).save(tmp_path / "screen.png")
    done = subprocess.run(
        [
            *(sys.executable, "examples/navigate.py", "--url", server.url, "--max-pixels", str(MAX_PIXELS)),
            *("--task", "Press the red button", "--done", '{"action": "scroll"}', str(tmp_path / "screen.png")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["action"] in NAMES


@pytest.mark.parametrize("size", [(320, 200), (97, 411)])
def test_a_place_is_in_pixels_of_the_screenshot(client: openai.OpenAI, size: tuple[int, int]) -> None:
    for number in range(6):
        action = step(client, screen(*size), f"Press button {number}", [], MAX_PIXELS)
        assert action.name in NAMES
        assert (action.place is not None) == (action.name == "click")
        if action.place is not None:
            assert 0 <= action.place[0] < size[0]
            assert 0 <= action.place[1] < size[1]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_chosen_action_is_always_whole_streamed_and_plain(client: openai.OpenAI, name: str) -> None:
    tools = actions(300, 200)
    (schema,) = (one["function"]["parameters"] for one in tools if one["function"]["name"] == name)
    asked = {
        "model": client.models.list().data[0].id,
        "messages": [{"role": "user", "content": "what next?"}],
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": name}},
        "temperature": 1.0,
        "seed": 4,
        "max_tokens": 900,
    }
    plain = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        folded = stream.get_final_completion()
    for answer in (plain, folded):
        (call,) = answer.choices[0].message.tool_calls
        assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", name)
        assert set(json.loads(call.function.arguments)) == set(schema["required"])
    assert plain.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


def test_responses_carry_the_same_calls(client: openai.OpenAI) -> None:
    tools = [{"type": "function", **one["function"]} for one in actions(300, 200)]
    asked = {
        "model": client.models.list().data[0].id,
        "input": "what next?",
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_output_tokens": 900,
    }
    plain = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        folded = stream.get_final_response()
    ((first,), (second,)) = plain.output, folded.output
    assert (plain.status, first.type) == ("completed", "function_call")
    assert (first.name, first.arguments) == (second.name, second.arguments)
    assert first.name in NAMES
    json.loads(first.arguments)
    result = {"type": "function_call_output", "call_id": first.call_id, "output": "done"}
    items = [{"role": "user", "content": "what next?"}, first, result]
    assert client.responses.create(**{**asked, "input": items}).usage.input_tokens > plain.usage.input_tokens


def test_peek_says_that_it_calls_no_tools() -> None:
    with served("peek") as peek, openai.OpenAI(base_url=f"{peek.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            step(client, screen(256, 256), "Press", [], MAX_PIXELS)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("size", [(1920, 1080), (3840, 2160), (320, 5000), (30, 30)])
def test_a_screen_is_shown_at_a_size_that_the_model_keeps(size: tuple[int, int]) -> None:
    from onsight.engines.torch_engine.families.qwen_images import resized

    shown = shown_size(*size, 1_003_520)
    assert resized(*shown, 28, 3136, 1_003_520) == shown
