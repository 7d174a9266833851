"""A script for the scripted server that answers anything: words drawn by what was asked, told in vLLM's forms."""

from __future__ import annotations

import asyncio
import json
import random
import re
import uuid
from typing import Any

from tests.engines.upstream_engine.scripted import HEAD, Play, Scripted, answers, chunk, slowly

WORDS = ("red", "green", "blue", "grey", "wide", "tall", "small", "large")
IMAGE_TOKENS = 16
END = "<|im_end|>"
Body = dict[str, Any]


def playing_vllm(server: Scripted) -> Play:
    """A play that answers the request that came last."""

    async def play(writer: asyncio.StreamWriter) -> None:
        body: Body = server.bodies[-1]
        texts, images = _parts(body["messages"])
        prompt = len(" ".join(texts).split()) + IMAGE_TOKENS * images
        if prompt >= (server.context_tokens or 0):
            message = f"This model's maximum context length is {server.context_tokens} tokens, and {prompt} were sent."
            await answers(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})(writer)
            return
        told, count = _called(body) or _said(body)
        # vLLM itself does not tell pictures from words.
        details = {"cached_tokens": 0, "image_tokens": IMAGE_TOKENS * images}
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "prompt_tokens_details": details}
        await slowly(0.001, HEAD, *told, chunk(choices=[], usage=usage), b"data: [DONE]\n\n")(writer)

    return play


def _parts(messages: list[Body]) -> tuple[list[str], int]:
    """(all texts, the number of pictures)."""
    parts = [part for message in messages for part in message["content"] or ()]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return texts + [call["name"] + call["arguments"] for call in calls], len(parts) - len(texts)


def _called(body: Body) -> tuple[list[bytes], int] | None:
    """(events of one call, its tokens), where there must be one."""
    choice = body.get("tool_choice", "auto")
    if choice in ("auto", "none"):
        return None
    tools = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
    name = next(iter(tools)) if choice == "required" else choice["function"]["name"]
    begun = {"index": 0, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name}}
    arguments = {"index": 0, "function": {"arguments": json.dumps(_example(tools[name]["parameters"]))}}
    return [_event(tool_calls=[begun]), _event(tool_calls=[arguments]), _event(reason="tool_calls")], 2


def _said(body: Body) -> tuple[list[bytes], int]:
    """(events of an answer in words, its tokens); the token that ends it is one of them and has no text."""
    if "response_format" in body:
        text = json.dumps(_example(body["response_format"]["json_schema"]["schema"]))
    else:
        chance = random.Random(json.dumps([body["messages"], body.get("seed")]))
        text = " ".join(chance.choice(WORDS) for _ in range(24))
    for stop in body.get("stop", ()):
        text = text.partition(stop)[0]
    tokens = [*re.findall(r"\S+|\s+", text), END][: body.get("max_tokens")]
    events = [_event(role="assistant", content="")]
    events += [_event(content=token, logprobs=_logprobs(token, body)) for token in tokens if token != END]
    if tokens[-1] == END:
        return [*events, _event(content="", logprobs=_logprobs(END, body), reason="stop")], len(tokens)
    return [*events, _event(content="", reason="length")], len(tokens)


def _event(logprobs: object = None, reason: str | None = None, **delta: object) -> bytes:
    return chunk(choices=[{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])


def _logprobs(token: str, body: Body) -> object:
    if not body.get("logprobs"):
        return None
    top = [_candidate(token, -0.1), *(_candidate(word, -9.0) for word in WORDS)]
    return {"content": [{**top[0], "top_logprobs": top[: body["top_logprobs"]]}]}


def _candidate(token: str, logprob: float) -> Body:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _example(schema: Body) -> object:
    """What the contract's schemas accept."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") in ("integer", "boolean"):
        return schema.get("minimum", True)
    return {name: _example(inner) for name, inner in schema.get("properties", {}).items()}
