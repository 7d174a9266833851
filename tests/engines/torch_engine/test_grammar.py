"""Whatever a random model says under a schema is valid under it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from onsight.core.errors import InvalidRequest
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine
from tests.tiny_models import draw

pytestmark = pytest.mark.model

CLICK = {
    "type": "object",
    "properties": {
        "action": {"const": "click_absolute"},
        "x": {"type": "integer", "minimum": 0, "maximum": 9999},
        "y": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["action", "x", "y"],
    "additionalProperties": False,
}
WIDGETS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {
            "kind": {"enum": ["button", "label"]},
            "text": {"type": "string", "maxLength": 6},
            "on": {"type": "boolean"},
        },
        "required": ["kind", "text"],
        "additionalProperties": False,
    },
}
CHOICE = {"anyOf": [{"enum": ["ja", "nein"]}, {"type": "null"}, {"type": "number", "minimum": 0, "maximum": 1}]}
REF = {"$ref": "#/$defs/p", "$defs": {"p": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-c]{2}$"}}, "required": ["a"], "additionalProperties": False}}}  # fmt: skip  # noqa: E501


def valid(schema: dict[str, object], value: object) -> bool:
    if schema is CLICK:
        return (
            isinstance(value, dict) and set(value) == {"action", "x", "y"} and all(0 <= value[k] <= 9999 for k in "xy")
        )
    if schema is WIDGETS:
        return (
            isinstance(value, list)
            and 1 <= len(value) <= 3
            and all(one["kind"] in ("button", "label") for one in value)
        )
    if schema is CHOICE:
        return value in ("ja", "nein", None) or isinstance(value, int | float)
    return isinstance(value, dict) and len(value["a"]) == 2 and set(value["a"]) <= set("abc")


@pytest.mark.parametrize("schema", [CLICK, WIDGETS, CHOICE, REF], ids=["click", "widgets", "choice", "ref"])
async def test_every_answer_is_valid(schema: dict[str, object], smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    requests = [
        asking(
            turn(draw((200, 20 * seed, 0)), "Where?"),
            schema=json.dumps(schema),
            temperature=1.0,
            seed=seed,
            max_tokens=300,
        )
        for seed in range(6)
    ]
    made = await asyncio.gather(*(answer(engine, request) for request in requests))
    assert [one.reason for one in made] == ["stop"] * 6
    assert all(valid(schema, json.loads(one.text)) for one in made)
    assert len({one.text for one in made}) > 1


async def test_json_object_is_json_as_far_as_it_goes(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    for seed in range(8):
        request = asking(turn("json"), schema='{"type": "object"}', temperature=0.9, seed=seed, max_tokens=150)
        made = await answer(engine, request)
        assert made.text.startswith("{")
        if made.reason == "stop":
            assert isinstance(json.loads(made.text), dict)


async def test_a_schema_binds_only_its_own_request(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    free = asking(turn("Where?"))
    alone = await answer(engine, free)
    bound = asking(turn("Where?"), schema=json.dumps(CLICK), max_tokens=100)
    beside, bound_answer = await asyncio.gather(answer(engine, free), answer(engine, bound))
    assert beside.text == alone.text
    assert json.loads(bound_answer.text)["action"] == "click_absolute"


async def test_greedy_answers_under_a_schema_repeat(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    request = asking(turn(draw((0, 0, 200)), "Where?"), schema=json.dumps(CLICK), max_tokens=100)
    assert (await answer(engine, request)).text == (await answer(engine, request)).text


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "nonsense"}', '{"type": "string", "pattern": "("}', "3"])
async def test_a_schema_that_cannot_be_used_is_refused_by_name(schema: str, smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    with pytest.raises(InvalidRequest) as caught:
        await answer(engine, asking(turn("x"), schema=schema))
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message
    assert await answer(engine, asking(turn("x")))
