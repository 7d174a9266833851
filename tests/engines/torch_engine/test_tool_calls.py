"""An answer's text is told apart, however it is cut into pieces: what is said, and what is called."""

from __future__ import annotations

import pytest

from onsight.core.generation import Candidate, Event, Finished, TextDelta, TokenLogprob, ToolCallDelta, Usage
from onsight.engines.torch_engine.tool_calls import CallReader
from onsight.engines.torch_engine.tool_syntax import HERMES

USAGE = Usage(1, 1)
CLICK = '<tool_call>\n{"name": "click", "arguments": {"at": "}</tool_call>\\n"}}\n</tool_call>'
WAIT = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'


def read(text: str, size: int, reason: str = "stop") -> tuple[str, list[tuple[str, str]], str]:
    """(what is said, [(name, arguments)], the reason) of an answer that comes in pieces of `size` characters."""
    reader = CallReader(HERMES)
    pieces: list[Event] = [TextDelta(text[at : at + size]) for at in range(0, len(text), size)]
    events = [told for piece in [*pieces, Finished(reason, USAGE)] for told in reader.read(piece)]  # type: ignore[arg-type]
    said, calls = "", []
    for event in events[:-1]:
        if isinstance(event, TextDelta):
            assert not calls
            said += event.text
        elif isinstance(event, ToolCallDelta):
            if event.id is not None:
                calls.append((event.name or "", ""))
            assert event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.arguments)
    end = events[-1]
    assert isinstance(end, Finished)
    return said, calls, end.reason


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 1000])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello", ("hello", [], "stop")),
        ("", ("", [], "stop")),
        ("a < b, and <tool_cal", ("a < b, and <tool_cal", [], "stop")),
        ("one\n", ("one\n", [], "stop")),
        (WAIT, ("", [("wait", "{}")], "tool_calls")),
        (CLICK, ("", [("click", '{"at": "}</tool_call>\\n"}')], "tool_calls")),
        (f"I wait.\n{WAIT}", ("I wait.", [("wait", "{}")], "tool_calls")),
        (f"I wait. {WAIT}", ("I wait. ", [("wait", "{}")], "tool_calls")),
        (
            f"{CLICK}\n{WAIT}",
            ("", [("click", '{"at": "}</tool_call>\\n"}'), ("wait", "{}")], "tool_calls"),
        ),
    ],
)
def test_text_and_calls_are_told_apart(text: str, told: tuple[object, ...], size: int) -> None:
    assert read(text, size) == told


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_call_that_is_cut_off_gives_what_there_is_of_it(size: int) -> None:
    assert read(CLICK[:-24], size, "length") == ("", [("click", '{"at": "}</tool')], "length")
    assert read(WAIT[:-2], size, "length") == ("", [("wait", "{}")], "length")
    assert read(WAIT[:20], size, "length") == ("", [], "length")
    assert read(f"{WAIT}\n{CLICK[:15]}", size, "length") == ("", [("wait", "{}")], "length")


def test_nothing_is_held_back_but_what_may_be_a_marker() -> None:
    reader = CallReader(HERMES)
    assert reader.read(TextDelta("I see <b>")) == [TextDelta("I see <b>")]
    assert reader.read(TextDelta(" and <tool")) == [TextDelta(" and ")]
    assert reader.read(TextDelta("s>")) == [TextDelta("<tools>")]


def test_log_probabilities_come_with_text_and_not_with_calls() -> None:
    reader = CallReader(HERMES)

    def token(text: str) -> TextDelta:
        return TextDelta(text, (TokenLogprob(Candidate(text, text.encode(), -1.0)),))

    told = [event for piece in ("so", "<", "b", *WAIT) for event in reader.read(token(piece))]
    spoken = [event for event in told if isinstance(event, TextDelta)]
    assert "".join(event.text for event in spoken) == "so<b"
    assert [one.chosen.text for event in spoken for one in event.logprobs] == ["so", "<", "b"]
