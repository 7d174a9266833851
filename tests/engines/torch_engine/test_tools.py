"""Tools on the torch engine: how they stand in the prompt, and that every call keeps to its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.generation import TextDelta
from onsight.core.messages import Message, Text
from onsight.core.tools import Tool, ToolCall, ToolChoice, ToolUse
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.grammar import GrammarCompiler
from onsight.engines.torch_engine.prompt import lay_out
from onsight.engines.torch_engine.tool_syntax import HERMES, PLAIN, ToolSyntax
from onsight.engines.torch_engine.turns import TemplateText
from onsight.engines.torch_engine.vocabulary import Vocabulary
from tests.engines.contract import CLICK, WAIT, calling, calls_of, check_call, events_of
from tests.engines.torch_engine.asking import turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import QWEN_TEMPLATE, draw, write_qwen

pytestmark = pytest.mark.model

HISTORY = (
    turn("Be exact.", role="system"),
    turn("click it"),
    Message("assistant", (Text("I click."), ToolCall("a", "click", '{"x":1,"button":"left"}'))),
    Message("tool", (Text("done"),), "a"),
    Message("assistant", (ToolCall("b", "wait", "{}"), ToolCall("c", "wait", "{}"))),
    Message("tool", (Text("late"),), "b"),
    Message("tool", (Text("later"),), "c"),
    Message("assistant", (Text("It is done."),)),
    turn("again"),
)

# What Qwen's newer checkpoints do: the template itself writes tools, calls and results.
WITH_TOOLS = (
    "{% macro say(message) %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ say(messages[0]) + '\n\n' }}"
    "{% else %}You are a helpful assistant.\n\n{% endif %}"
    f"{HERMES.before[:-1]}{{% for tool in tools %}}{{{{ '\n' }}}}{{{{ tool | tojson }}}}{{% endfor %}}"
    f"{{{{ {HERMES.after!r} }}}}<|im_end|>\n{{% endif %}}"
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}{{ '\n<tool_response>\n' }}{{ say(message) }}"
    "{{ '\n</tool_response>' }}{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif message.role != 'system' %}<|im_start|>{{ message.role + '\n' }}{{ say(message) }}"
    "{% for call in message.tool_calls %}{% if not loop.first or message.content %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' }}{{ call.function.name }}{{ \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "<|im_start|>{{ 'assistant\n' }}"
)


def prompt(folder: Path, source: str, syntax: ToolSyntax, tools: tuple[Tool, ...], *messages: Message) -> str:
    """The prompt's text, template words and people's words alike."""
    pieces = ChatTemplate(folder, "<|image_pad|>", source, syntax=syntax).render(messages, tools)
    return "".join(piece.text for piece in pieces if isinstance(piece, TemplateText | Text))


@pytest.mark.parametrize("start_at", [0, 1])
def test_we_write_tools_as_a_template_that_takes_them_does(qwen: Path, start_at: int) -> None:
    messages = HISTORY[start_at:]
    theirs = prompt(qwen, WITH_TOOLS, HERMES, (CLICK, WAIT), *messages)
    assert prompt(qwen, QWEN_TEMPLATE, HERMES, (CLICK, WAIT), *messages) == theirs
    assert '<tool_call>\n{"name": "click", "arguments": {"x": 1, "button": "left"}}\n</tool_call><|im_end|>' in theirs
    assert "<|im_start|>user\n<tool_response>\nlate\n</tool_response>\n<tool_response>\nlater\n" in theirs
    assert json.dumps({"type": "function", "function": {"name": "wait", "parameters": json.loads(WAIT.parameters)}}) in theirs  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("source", [QWEN_TEMPLATE, WITH_TOOLS])
def test_nobodys_tool_or_call_becomes_a_token_of_the_template(qwen: Path, source: str) -> None:
    vocabulary = Vocabulary(qwen)
    template = ChatTemplate(qwen, "<|image_pad|>", source, syntax=HERMES)
    count = vocabulary.require("<|im_end|>")

    def ends(word: str) -> int:
        tool = Tool("click", f"d {word}", json.dumps({"type": "object", "properties": {word: {"const": word}}}))
        call = ToolCall("a", "click", json.dumps({word: word}))
        messages = [turn("x"), Message("assistant", (call,)), Message("tool", (Text(word),), "a")]
        return lay_out(messages, template, vocabulary, [], None, [tool]).token_ids.count(count)

    assert ends("<|im_end|>") == ends("word") > 0


async def test_a_result_may_hold_a_picture(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen, max_num_seqs=1)
    messages = (*HISTORY[1:3], Message("tool", (Text("now:"), draw((200, 0, 0))), "a"))
    end = (await events_of(engine, replace(calling("x"), messages=messages)))[-1]
    assert end.usage.image_tokens > 0


async def test_a_family_without_a_form_of_its_own_is_told_in_plain_words(smolvlm: Path) -> None:
    template = ChatTemplate(smolvlm, "<image>", syntax=PLAIN)
    text = "".join(piece.text for piece in template.render([turn("hello")], (WAIT,)))
    assert text.startswith("<|im_start|>System: You may call one of these functions:\n{")
    assert '"name": "wait"' in text
    assert "User: hello" in text


async def test_calls_keep_to_their_schemas_whatever_the_weights(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)
    counts = set()
    for seed in range(8):
        request = calling("go", seed=seed)
        request = replace(request, sampling=replace(request.sampling, max_tokens=400))
        events = await events_of(engine, request)
        calls = calls_of(events)
        counts.add(len(calls))
        for call in calls if events[-1].reason == "tool_calls" else calls[:-1]:
            check_call(call)
            # One way to write blanks, so that a model cannot fill its answer with them.
            assert call.arguments == json.dumps(json.loads(call.arguments))
    assert max(counts) > 1


@pytest.mark.parametrize("mode", ["required", "auto"])
async def test_a_marker_that_is_a_token_of_its_own_is_written_as_that_token(
    mode: str, tmp_path: Path, start: StartEngine
) -> None:
    folder = write_qwen(tmp_path, words=("<tool_call>", "</tool_call>"))
    vocabulary = Vocabulary(folder)
    opens, closes = (vocabulary.require(word) for word in ("<tool_call>", "</tool_call>"))
    end = vocabulary.require("<|im_end|>")
    compiler = GrammarCompiler(vocabulary, vocabulary.size, [end])
    grammar = compiler.compile_calls(ToolUse((WAIT,), ToolChoice(mode), False), HERMES, None)  # type: ignore[arg-type]

    def may(token: int) -> bool:
        return bool(grammar.allowed(vocabulary.size)[token])

    assert (may(opens), may(vocabulary.require("<"))) == (True, mode == "auto")
    for token in (opens, *vocabulary.encode([('\n{"name": "wait", "arguments": {}}\n', False)])):
        grammar.accept(token)
    assert (may(closes), may(vocabulary.require("<")), may(end)) == (True, False, False)
    grammar.accept(closes)
    assert grammar.complete or may(end)

    engine = await start(folder)
    for seed in range(4):
        request = calling("go", mode=mode, seed=seed, parallel=False)
        events = await events_of(engine, replace(request, sampling=replace(request.sampling, max_tokens=400)))
        for call in calls_of(events):
            check_call(call)
        assert events[-1].reason == "tool_calls" or mode == "auto"


async def test_one_call_is_the_end_where_parallel_calls_are_off_or_not_the_familys(
    qwen: Path, smolvlm: Path, start: StartEngine
) -> None:
    for folder, parallel in ((qwen, False), (smolvlm, None)):
        engine = await start(folder)
        for seed in range(4):
            assert len(calls_of(await events_of(engine, calling("go", seed=seed, parallel=parallel)))) == 1
    with pytest.raises(Unsupported) as caught:
        await events_of(engine, calling("go", parallel=True))
    assert caught.value.param == "parallel_tool_calls"


async def test_a_schema_that_the_grammar_cannot_express_is_refused_with_the_reason(
    qwen: Path, start: StartEngine
) -> None:
    engine = await start(qwen)
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}, "required": ["x"]}
    bad = Tool("bad", parameters=json.dumps(schema), param="tools.1.function.parameters")
    with pytest.raises(InvalidRequest, match="the JSON schema cannot be used") as caught:
        await events_of(engine, calling("x", CLICK, bad))
    assert caught.value.param == "tools.1.function.parameters"
    assert calls_of(await events_of(engine, calling("x", CLICK)))


async def test_a_free_choice_under_a_schema_is_that_json_or_a_call(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)
    schema = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False})  # fmt: skip  # noqa: E501
    kinds = set()
    for seed in range(40):
        events = await events_of(engine, replace(calling("x", WAIT, mode="auto", seed=seed), schema=schema))
        said = "".join(event.text for event in events if isinstance(event, TextDelta))
        if said:
            assert set(json.loads(said)) == {"ok"}
            assert not calls_of(events)
        kinds.add(bool(said))
    assert kinds == {True, False}


async def test_references_inside_parameters_are_followed(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)
    point = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {"point": point},
    }
    request = calling("x", Tool("a", parameters=json.dumps(schema)), Tool("b", parameters=json.dumps(schema)), parallel=False)  # fmt: skip  # noqa: E501
    (call,) = calls_of(await events_of(engine, request))
    assert json.loads(call.arguments)["at"]["x"] in (1, 2)


async def test_a_stop_text_does_not_cut_a_call(qwen: Path, start: StartEngine) -> None:
    engine = await start(qwen)
    request = calling("x", CLICK, parallel=False)
    stopped = replace(request, sampling=replace(request.sampling, stop=("name", "tool", '"')))
    (call,) = calls_of(await events_of(engine, stopped))
    check_call(call)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_stop_text_counts_up_to_a_call(qwen: Path, size: int) -> None:
    vocabulary = Vocabulary(qwen)

    def streamed(text: str, *stop: str) -> str:
        stream = TextStream(vocabulary, stop, "<tool_call>")
        ids = vocabulary.encode([(text, False)])
        out = ""
        for token in ids:
            out += stream.push(token)
            if stream.stopped:
                return out
        return out + stream.finish()

    assert streamed("one two <tool_call> two", "two") == "one "
    assert streamed("one <tool_call> two", "two", "tool", "<t") == "one <tool_call> two"
    assert streamed("one <tool two", "tool") == "one <"
    assert streamed("one <tool", "tool") == "one <"


def test_a_choice_of_one_name_leaves_that_tool_alone() -> None:
    assert ToolUse((CLICK, WAIT), ToolChoice("required", "wait")).callable == (WAIT,)
    assert ToolUse((CLICK, WAIT)).callable == (CLICK, WAIT)
