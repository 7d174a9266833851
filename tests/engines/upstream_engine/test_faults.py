"""What the upstream engine makes of servers that are down, slow, wrong, or leave in the middle."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from PIL import Image as Pillow

from onsight.core.errors import (
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
    StartError,
    TooLarge,
    Unavailable,
    Unsupported,
)
from onsight.core.generation import Finished, GenerateRequest, Sampling, TextDelta, Usage
from onsight.core.messages import Image, ImageOptions, Message, Text
from onsight.core.tools import Tool, ToolCall
from onsight.engines.upstream_engine import Address, UpstreamEngine, UpstreamSettings, Watch
from onsight.engines.upstream_engine.connection import KeyRefused
from onsight.engines.upstream_engine.keeper import Check
from tests.engines.contract import CLICK, WAIT, ask, calling, events_of, idle, solid, text_of
from tests.engines.upstream_engine.scripted import (
    GOOD,
    HEAD,
    Play,
    Scripted,
    answers,
    chunk,
    drops,
    ending,
    endless,
    piece,
    says,
    scripted,
)

QUICK = UpstreamSettings(silence_s=5.0, retry_pause_s=0.001)


@asynccontextmanager
async def started(
    server: Scripted, settings: UpstreamSettings = QUICK, every_s: float = 60.0
) -> AsyncIterator[UpstreamEngine]:
    """An engine before the server, whose first request (the check) is done and forgotten."""
    engine = UpstreamEngine(Address(server.url), Watch(server.url, every_s=every_s), settings)
    await engine.start()
    server.bodies.clear()
    try:
        yield engine
    finally:
        await engine.close()


async def test_an_answer_comes_through_with_what_it_cost() -> None:
    async with scripted() as server, started(server) as engine:
        *deltas, end = await events_of(engine, ask("hi", solid((1, 2, 3))))
        assert deltas == [TextDelta("Hello"), TextDelta(" you")]
        assert isinstance(end, Finished)
        assert end.usage == Usage(9, 2, 0, 4)


async def test_only_listed_fields_and_decoded_pixels_go_out() -> None:
    async with scripted() as server, started(server) as engine:
        await events_of(engine, ask("hi", solid((200, 10, 10), 8, 6)))
    (body,) = server.bodies
    assert set(body) == {
        "model", "messages", "stream", "stream_options", "temperature", "top_p", "presence_penalty",
        "frequency_penalty", "max_tokens",
    }  # fmt: skip
    assert body["stream"] is True
    assert isinstance(body["messages"], list)
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "hi"}
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Pillow.open(io.BytesIO(data)) as opened:
        assert opened.size == (8, 6)
        assert opened.getpixel((0, 0)) == (200, 10, 10)


async def test_no_picture_is_read_letter_by_letter_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a JSON encoder does, which holds up the event loop even from another thread."""
    lengths, encode = [], json.JSONEncoder.encode

    def measured(encoder: json.JSONEncoder, value: object) -> str:
        lengths.append(len(encoded := encode(encoder, value)))
        return encoded

    picture = Image.of(random.Random(1).randbytes(64 * 64 * 3), 64, 64)
    async with scripted() as server, started(server) as engine:
        monkeypatch.setattr(json.JSONEncoder, "encode", measured)
        await events_of(engine, ask("hi", picture))
        monkeypatch.undo()
    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]  # type: ignore[index]
    with Pillow.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as opened:
        assert opened.tobytes() == picture.pixels
    assert lengths
    assert max(lengths) < 1000


@pytest.mark.parametrize(("owner", "first"), [("llamacpp", "image_url"), ("vllm", "text")])
async def test_pictures_go_first_where_only_a_prompts_start_is_reused(owner: str, first: str) -> None:
    request = GenerateRequest((Message("user", (Text("before"), solid((1, 1, 1)), solid((2, 2, 2)))),))
    async with scripted(owner) as server, started(server) as engine:
        await events_of(engine, request)
    content = server.bodies[0]["messages"][0]["content"]  # type: ignore[index]
    assert content[0]["type"] == first
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert len(set(pictures)) == 2


async def test_pictures_with_words_between_them_keep_their_places() -> None:
    parts = (Text("first"), solid((1, 1, 1)), Text("second"), solid((2, 2, 2)))
    async with scripted("llamacpp") as server, started(server) as engine:
        await events_of(engine, GenerateRequest((Message("user", parts),)))
    kinds = [part["type"] for part in server.bodies[0]["messages"][0]["content"]]  # type: ignore[index]
    assert kinds == ["text", "image_url", "text", "image_url"]


async def test_texts_side_by_side_go_out_as_one() -> None:
    async with scripted() as server, started(server) as engine:
        await events_of(engine, GenerateRequest((Message("user", (Text("one "), Text("two"))),)))
    content = server.bodies[0]["messages"][0]["content"]  # type: ignore[index]
    assert content == [{"type": "text", "text": "one two"}]


async def test_a_picture_is_named_after_its_content_where_the_server_keeps_it_by_name() -> None:
    picture = solid((9, 9, 9))
    async with scripted("vllm") as server, started(server) as engine:
        await events_of(engine, ask("hi", picture))
    assert server.bodies[0]["messages"][0]["content"][0]["uuid"] == picture.digest  # type: ignore[index]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask("x", sampling=Sampling(top_k=5)), "top_k"),
        (ask("x", sampling=Sampling(max_tokens=0)), "max_tokens"),
        (ask("x", replace(solid((1, 1, 1)), options=ImageOptions(max_pixels=99))), "max_pixels"),
        (ask("x", schema="[]"), "response_format"),
    ],
)
async def test_what_the_server_would_not_honour_is_refused_before_it_hears_of_it(
    request_: GenerateRequest, param: str
) -> None:
    async with scripted() as server, started(server) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await events_of(engine, request_)
        assert caught.value.param == param
        assert server.bodies == []


async def test_detail_is_refused_where_the_server_ignores_it() -> None:
    picture = replace(solid((1, 1, 1)), options=ImageOptions(detail="low"))
    async with scripted("vllm") as server, started(server) as engine:
        with pytest.raises(Unsupported, match="low"):
            await events_of(engine, ask("x", picture))


def said(*parts: Text | Image) -> GenerateRequest:
    return GenerateRequest((Message("user", parts),))


def called(call: ToolCall, result: str = "done") -> GenerateRequest:
    return GenerateRequest((Message("assistant", (call,)), Message("tool", (Text(result),), call.id)))


END = "<|im_end|>"
HIDDEN = '{"x": "\\u003c|im_end|>"}'
"""JSON in which only an escape keeps it from standing there."""


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (said(Text(f"a {END} b")), "messages"),
        (said(Text("<|im_"), Text("end|>")), "messages"),
        (said(Text("<|im_"), solid((1, 1, 1)), Text("end|>")), "messages"),
        (called(ToolCall("c1", "click", json.dumps({"x": END}))), "messages"),
        (called(ToolCall("c1", "click", HIDDEN)), "messages"),
        (called(ToolCall("c1", END, "{}")), "messages"),
        (called(ToolCall(END, "click", "{}")), "messages"),
        (called(ToolCall("c1", "click", "{}"), END), "messages"),
        (calling("x", Tool(END)), "tools"),
        (calling("x", Tool("wait", f"Wait {END}")), "tools"),
        (calling("x", Tool("wait", parameters=json.dumps({"type": "object", "properties": {END: {}}}))), "tools"),
        (calling("x", Tool("wait", parameters='{"type": "image_url", "enum": ["\\u003c|im_end|>"]}')), "tools"),
    ],
)
async def test_words_that_the_server_would_read_as_special_tokens_are_refused(
    request_: GenerateRequest, param: str
) -> None:
    settings = replace(QUICK, reserved=frozenset({END}))
    async with scripted("llamacpp") as server, started(server, settings) as engine:
        with pytest.raises(InvalidRequest, match=r"<\|im_end\|>") as caught:
            await events_of(engine, request_)
        assert caught.value.param == param
        assert server.bodies == []


async def test_what_is_no_special_token_where_it_stands_is_sent() -> None:
    settings = replace(QUICK, reserved=frozenset({END, "user", "function", "image_url"}))
    parts = (Text("<|im_"), solid((1, 1, 1)), Text("end|>"))
    async with scripted("vllm") as server, started(server, settings) as engine:
        assert await text_of(engine, said(*parts)) == "Hello you"


@pytest.mark.parametrize("fault", [drops(), answers(503, "loading"), answers(502)])
async def test_a_request_that_did_not_reach_the_model_is_sent_again(fault: object) -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [fault, fault]  # type: ignore[list-item]
        assert await text_of(engine, ask("hi")) == "Hello you"
        assert len(server.bodies) == 3


async def test_it_gives_up_after_three_tries() -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [drops()] * 5
        with pytest.raises(Unavailable):
            await events_of(engine, ask("hi"))
        assert len(server.bodies) == 3


def cut(first: bytes) -> bytes:
    """A chunked answer whose second chunk never comes."""
    return HEAD.replace(b"connection: close", b"transfer-encoding: chunked") + b"%x\r\n%b\r\n" % (len(first), first)


async def test_an_answer_that_is_cut_off_is_told_from_one_that_ended() -> None:
    async with scripted() as server, started(server) as engine:
        for broken in (says(HEAD, piece("Hel")), says(cut(piece("Hel")))):
            server.plays = [broken]
            with pytest.raises(EngineFailed, match="broke off"):
                await events_of(engine, ask("hi"))
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "broken",
    [
        says(HEAD, piece("Hel"), b"data: {nonsense\n\n"),
        says(HEAD, piece("Hel"), b'data: {"choices": 7}\n\n'),
        says(HEAD, piece("Hel"), b'data: {"error": {"message": "/secret/path"}}\n\n'),
        says(HEAD, piece("Hel"), b"error: /secret/path\n\n"),
        says(HEAD, piece("Hel"), ending("mystery")),
        says(HEAD, piece("Hel"), b"data: [DONE]\n\n"),
    ],
)
async def test_an_answer_that_breaks_after_its_first_token_is_an_error_and_is_not_asked_for_again(
    broken: object,
) -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [broken]  # type: ignore[list-item]
        async with aclosing(engine.generate(ask("hi"))) as stream:
            assert await anext(stream) == TextDelta("Hel")
            with pytest.raises(EngineFailed) as caught:
                await anext(stream)
        assert "secret" not in caught.value.message
        assert len(server.bodies) == 1
        assert await text_of(engine, ask("again")) == "Hello you"


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
async def test_an_end_that_openai_does_not_know_is_named(reason: str) -> None:
    async with scripted("vllm") as server, started(server) as engine:
        server.plays = [says(HEAD, piece("Hel"), ending(reason))]
        with pytest.raises(EngineFailed, match=f"ended the answer with '{reason}'"):
            await events_of(engine, ask("hi"))


async def test_an_answer_that_a_filter_cut_is_passed_on_and_need_not_keep_to_its_schema() -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [says(HEAD, piece('{"a": '), ending("content_filter"))]
        said, end = await events_of(engine, ask("x", schema='{"type": "object"}'))
    assert said == TextDelta('{"a": ')
    assert isinstance(end, Finished)
    assert end.reason == "content_filter"


async def test_an_error_in_the_middle_is_in_the_log_word_for_word(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted() as server, started(server) as engine:
        for broken in (b'data: {"error": {"message": "out of /gpu0"}}\n\n', b"error: out of /gpu0\n\n"):
            server.plays = [says(HEAD, piece("Hel"), broken)]
            caplog.clear()
            with pytest.raises(EngineFailed, match="cannot be read"):
                await events_of(engine, ask("hi"))
            assert "out of /gpu0" in caplog.text


async def test_an_endless_line_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsight.engines.upstream_engine.connection._LONGEST_LINE", 1000)
    async with scripted() as server, started(server) as engine:
        server.plays = [says(HEAD, b"data: " + b"x" * 5000)]
        with pytest.raises(EngineFailed, match="cannot be read"):
            await events_of(engine, ask("hi"))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "no /secret/path"}}, InvalidRequest),
        (400, "not json", InvalidRequest),
        (400, {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 5000}}, ContextTooLong),
        (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, ContextTooLong),
        (401, "no key /secret/path", KeyRefused),
        (404, {"detail": "no such model"}, EngineFailed),
        (413, "", TooLarge),
        (429, "", Overloaded),
        (500, "Traceback /secret/path", EngineFailed),
    ],
)
async def test_a_refusal_becomes_an_error_of_ours_without_its_internals(
    status: int, body: object, kind: type[RequestError]
) -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [answers(status, body)]
        with pytest.raises(kind) as caught:
            await events_of(engine, ask("hi"))
        assert type(caught.value) is kind
        assert "secret" not in caught.value.message
        assert len(server.bodies) == 1


async def test_a_prompt_that_is_too_long_is_refused_with_its_numbers() -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [answers(400, {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 5000}})]
        with pytest.raises(ContextTooLong, match=r"5000 .* 4096"):
            await events_of(engine, ask("hi"))


async def test_a_server_that_is_silent_for_too_long_is_not_waited_for() -> None:
    async with scripted() as server, started(server, replace(QUICK, silence_s=0.2)) as engine:
        server.plays = [silent]
        with pytest.raises(Unavailable, match="slow"):
            await events_of(engine, ask("hi"))
        assert len(server.bodies) == 1


UNCOUNTED = says(HEAD, piece("Hello"), ending().replace(b"image_tokens", b"other"))
LAID_OUT = answers(200, {"prompt": "user: <__media__>hi"})


async def test_pictures_are_counted_by_a_llama_server_that_does_not_say_its_marker() -> None:
    async with scripted("llamacpp") as server, started(server) as engine:
        told = {"/props": {}, "/tokenize": {"tokens": [1, 2, 3]}}
        server.pages = {path: answers(200, body) for path, body in told.items()} | {"/apply-template": LAID_OUT}
        server.plays = [UNCOUNTED]
        *_, end = await events_of(engine, ask("hi", solid((1, 2, 3))))
        assert isinstance(end, Finished)
        assert end.usage == Usage(9, 2, 0, 9 - 3)


async def test_tools_are_counted_as_words_and_not_as_pictures() -> None:
    async with scripted("llamacpp") as server, started(server) as engine:
        told = {"/props": {}, "/apply-template": {"prompt": "x"}, "/tokenize": {"tokens": [1]}}
        server.pages = {path: answers(200, body) for path, body in told.items()}
        server.plays = [UNCOUNTED]
        request = replace(calling("hi", CLICK, mode="auto"), messages=(Message("user", (solid((1, 2, 3)),)),))
        await events_of(engine, request)
    sent, laid_out = server.bodies[0], server.told["/apply-template"]
    for field in ("tools", "tool_choice"):
        assert laid_out[field] == sent[field]
    assert len(json.dumps(laid_out["messages"])) < len(json.dumps(sent["messages"]))


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("/props", answers(404)),
        ("/props", drops()),
        ("/apply-template", answers(200, {})),
        ("/tokenize", answers(200, {"tokens": 7})),
        ("/tokenize", answers(200, "no JSON")),
    ],
)
async def test_a_whole_answer_is_not_lost_to_a_count_that_fails(
    path: str, broken: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted("llamacpp") as server, started(server) as engine:
        good = {"/props": answers(200, {}), "/apply-template": LAID_OUT, "/tokenize": answers(200, {})}
        server.pages = {**good, path: broken}
        server.plays = [UNCOUNTED]
        assert await text_of(engine, ask("hi", solid((1, 2, 3)))) == "Hello"
    assert "could not be counted" in caplog.text


def told(**fields: object) -> Play:
    """An answer of one word, with these fields in its first choice."""
    choice = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None, **fields}
    return says(HEAD, chunk(choices=[choice]), ending())


CALL = {"index": 0, "id": "call_1", "function": {"name": "click", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("asked", "param", "kept"),
    [
        (
            ask("x", sampling=Sampling(logprobs=True)),
            "logprobs",
            told(logprobs={"content": [{"token": "Hello", "logprob": -0.5}]}),
        ),
        (ask("x", schema='{"type": "object"}'), "response_format", told(delta={"content": "{}"})),
        (calling("x"), "tool_choice", told(delta={"tool_calls": [CALL]})),
    ],
)
async def test_what_the_server_passes_over_in_silence_is_named(asked: GenerateRequest, param: str, kept: Play) -> None:
    async with scripted() as server, started(server) as engine:
        with pytest.raises(Unsupported, match=param) as caught:
            await events_of(engine, asked)
        assert caught.value.param == param
        server.plays = [kept]
        assert isinstance((await events_of(engine, asked))[-1], Finished)


async def test_llama_is_offered_a_named_tool_alone_since_it_heeds_no_name() -> None:
    asked = calling("x", CLICK, WAIT, mode="required", name="click", parallel=True)
    bodies = []
    for owner in ("llamacpp", "vllm"):
        async with scripted(owner) as server, started(server) as engine:
            server.plays = [told(delta={"tool_calls": [CALL]})]
            assert isinstance((await events_of(engine, asked))[-1], Finished)
            bodies += server.bodies
    names = [[tool["function"]["name"] for tool in body["tools"]] for body in bodies]  # type: ignore[attr-defined]
    assert names == [["click"], ["click", "wait"]]
    choices = [(body["tool_choice"], body["parallel_tool_calls"]) for body in bodies]
    assert choices == [("required", False), ({"type": "function", "function": {"name": "click"}}, True)]


@pytest.mark.parametrize("owner", ["llamacpp", "vllm", "somebody"])
@pytest.mark.parametrize("reason", ["tool_calls", "length"])
async def test_a_call_of_another_tool_is_no_answer(owner: str, reason: str) -> None:
    play = says(HEAD, chunk(choices=[{"index": 0, "delta": {"tool_calls": [CALL]}}]), ending(reason))
    async with scripted(owner) as server, started(server) as engine:
        server.plays = [play, play, play]
        with pytest.raises(Unsupported, match="tool_choice"):
            await events_of(engine, calling("x", CLICK, WAIT, mode="required", name="wait"))
        for others in (calling("x", WAIT, mode="auto"), ask("x")):
            with pytest.raises(EngineFailed, match="does not offer"):
                await events_of(engine, others)


async def test_the_token_that_ends_an_answer_is_no_part_of_it() -> None:
    """vLLM sends its log-probability with the last event, which has no text."""
    named = [{"content": [{"token": token, "logprob": -0.5}]} for token in ("Hello", "\ufffd", "<end>")]
    texts, reasons = ("Hello", "", ""), (None, None, "stop")
    sent = [
        chunk(choices=[{"index": 0, "delta": {"content": text}, "logprobs": one, "finish_reason": reason}])
        for text, one, reason in zip(texts, named, reasons, strict=True)
    ]
    async with scripted() as server, started(server) as engine:
        server.plays = [says(HEAD, *sent, ending())]
        events = await events_of(engine, ask("x", sampling=Sampling(logprobs=True)))
    tokens = [one.chosen.text for event in events if isinstance(event, TextDelta) for one in event.logprobs]
    assert tokens == ["Hello", "\ufffd"]  # a part of a letter has no text of its own either


async def test_an_answer_that_was_cut_short_need_not_keep_to_its_schema() -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [says(HEAD, piece('{"a": '), ending("length"))]
        assert await text_of(engine, ask("x", schema='{"type": "object"}')) == '{"a": '


async def test_an_answer_that_a_stop_text_ended_need_not_keep_to_its_schema() -> None:
    stopping = ask("x", sampling=Sampling(stop=(",",)), schema='{"type": "object"}')
    async with scripted() as server, started(server) as engine:
        server.plays = [says(HEAD, piece('{"a": 1'), ending())]
        assert await text_of(engine, stopping) == '{"a": 1'


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


class Asking(Watch):
    """Keeps the probe, to be asked by hand."""

    probe: Check

    async def start(self, check: Check, probe: Check) -> None:
        await super().start(check, probe)
        self.probe = probe


async def test_a_server_that_goes_on_with_an_answer_lives_though_it_lets_other_questions_wait() -> None:
    async with scripted() as server:
        keeper = Asking(server.url, every_s=60.0)
        engine = UpstreamEngine(Address(server.url), keeper, QUICK)
        await engine.start()
        server.pages["/v1/models"], server.plays = silent, [endless]
        stream = engine.generate(ask("sing"))
        await anext(stream)
        async with asyncio.timeout(5):
            await keeper.probe()
        await stream.aclose()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await keeper.probe()
        await engine.close()


async def test_closing_the_generator_closes_the_connection() -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [endless]
        stream = engine.generate(ask("sing"))
        await anext(stream)
        await stream.aclose()
        await idle(engine)
        async with asyncio.timeout(10):
            while not server.left:
                await asyncio.sleep(0.005)


async def test_callers_take_turns_before_the_servers_slots() -> None:
    """Else one request would wait in the server's own line behind all that another caller has asked for."""
    go_on = asyncio.Event()

    async def waiting(writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await GOOD(writer)

    async with scripted() as server, started(server, replace(QUICK, slots=2)) as engine:
        server.usual = waiting
        asked = [replace(ask(f"a{number}"), caller="a") for number in range(8)] + [replace(ask("b"), caller="b")]
        answering = [asyncio.create_task(text_of(engine, request)) for request in asked]
        async with asyncio.timeout(10):
            while engine._turns.waiting < 7:
                await asyncio.sleep(0.005)
            go_on.set()
            assert await asyncio.gather(*answering) == ["Hello you"] * 9
    order = [body["messages"][0]["content"][0]["text"] for body in server.bodies]  # type: ignore[index]
    assert order.index("b") < 5


async def test_who_waits_for_its_turn_may_leave() -> None:
    async with scripted() as server, started(server, replace(QUICK, slots=1)) as engine:
        server.plays = [endless]
        first = engine.generate(ask("sing"))
        await anext(first)
        second = asyncio.create_task(text_of(engine, ask("hi")))
        async with asyncio.timeout(10):
            while not engine._turns.waiting:
                await asyncio.sleep(0.005)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert len(server.bodies) == 1
            await first.aclose()
            assert await text_of(engine, ask("hi")) == "Hello you"


@pytest.mark.parametrize("asked", [1000, 4097])
async def test_another_context_than_the_servers_own_is_not_promised(asked: int) -> None:
    async with scripted() as server:
        settings = replace(QUICK, context_tokens=asked)
        engine = UpstreamEngine(Address(server.url), Watch(server.url), settings)
        with pytest.raises(StartError, match=rf"max_model_len is {asked}, .* 4096"):
            await engine.start()
        await engine.close()
        for right in (replace(settings, context_tokens=4096), replace(settings, ours=True)):
            async with started(server, right) as engine:
                assert engine.context_tokens == 4096


async def test_readiness_follows_the_server() -> None:
    async with scripted() as server, started(server, every_s=0.01) as engine:
        assert engine.status().state == "ready"
        server.models_status = 500
        await _until(engine, "loading")
        with pytest.raises(Unavailable):
            await events_of(engine, ask("hi"))
        server.models_status = 200
        await _until(engine, "ready")
        assert await text_of(engine, ask("hi")) == "Hello you"


async def _until(engine: UpstreamEngine, state: str) -> None:
    async with asyncio.timeout(10):
        while engine.status().state != state:
            await asyncio.sleep(0.005)


async def test_a_server_that_is_down_at_the_start_is_named() -> None:
    url = "http://127.0.0.1:9"
    engine = UpstreamEngine(Address(url), Watch(url, every_s=0.01, start_s=0.05), QUICK)
    with pytest.raises(StartError, match=url):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_a_wrong_key_stops_the_start_at_once_with_what_to_do(key: str | None) -> None:
    async with scripted() as server:
        server.key = "right"
        engine = UpstreamEngine(Address(server.url, key=key), Watch(server.url), QUICK)
        async with asyncio.timeout(10):
            with pytest.raises(StartError, match=r"401.* --upstream-key"):
                await engine.start()
        await engine.close()
        engine = UpstreamEngine(Address(server.url, key="right"), Watch(server.url), QUICK)
        await engine.start()
        await engine.close()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_server_that_tells_its_models_to_all_but_wants_a_key_for_answers_is_told_apart(status: int) -> None:
    async with scripted() as server:
        server.plays = [answers(status)]
        engine = UpstreamEngine(Address(server.url), Watch(server.url), QUICK)
        with pytest.raises(StartError, match=rf"{status}.* --upstream-key"):
            await engine.start()
        await engine.close()


async def test_a_server_that_does_not_count_tokens_is_not_started_with() -> None:
    async with scripted() as server:
        server.plays = [says(HEAD, piece("x"), ending().replace(b"usage", b"other"))]
        engine = UpstreamEngine(Address(server.url), Watch(server.url), QUICK)
        with pytest.raises(StartError, match="include_usage"):
            await engine.start()
        await engine.close()


async def test_a_good_server_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted() as server, started(server) as engine:
        server.plays = [GOOD]
        await events_of(engine, ask("hi"))
        assert len(server.bodies) == 1
    assert [record for record in caplog.records if record.levelname != "INFO" and "onsight" in record.name] == []
