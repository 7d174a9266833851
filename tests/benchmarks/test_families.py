"""The families' benchmark on tiny shapes: both sides answer, figures come out, and what does not fit is named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.families import Measured, Plan, measure, obstacle, report
from benchmarks.shapes import SHAPES, decode_bytes, outline, weights, write_shape

pytestmark = pytest.mark.model

PLAN = Plan(torch.device("cpu"), torch.float32, (1, 2), tokens=4, rounds=2, budget_s=60.0)


@pytest.fixture(scope="module", params=["tiny-smolvlm", "tiny-qwen"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    shape = SHAPES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.shapes._SHARD_BYTES", 100_000)  # several files, as the large ones have
        folder = write_shape(shape, tmp_path_factory.mktemp("shapes") / shape.name)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return asyncio.run(measure(shape, folder, PLAN))


def test_both_sides_are_measured_in_every_round_and_say_the_same(measured: Measured) -> None:
    assert set(measured.rates) == {(name, count) for name in ("Onsight", "generate") for count in (1, 2)}
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in measured.rates.values())
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in measured.firsts.values())
    # In float32 both choose the same tokens: 2 rounds of 1 and of 2 answers.
    assert measured.same == [True] * 6


def test_bfloat16_is_measured_too(tmp_path: Path) -> None:
    shape = SHAPES["tiny-qwen"]
    folder = write_shape(shape, tmp_path / "model")
    found = asyncio.run(measure(shape, folder, replace(PLAN, dtype=torch.bfloat16, rounds=1)))
    assert all(min(rounds) > 0 for rounds in (*found.rates.values(), *found.firsts.values()))


def test_the_report_has_a_row_for_every_load_and_screen(measured: Measured) -> None:
    made = report([measured], ["Something was left out."], PLAN)
    writing, first = made.tables
    assert [row[:2] for row in writing.rows] == [(measured.shape.name, 1), (measured.shape.name, 2)]
    assert [row[:2] for row in first.rows] == [(measured.shape.name, "192x108")]
    assert made.notes[0] == "Something was left out."
    assert len(made.aims) == 2


def test_no_round_begins_once_the_time_is_over(tmp_path: Path) -> None:
    shape = replace(SHAPES["tiny-smolvlm"], screens=())
    folder = write_shape(shape, tmp_path / "model")
    found = asyncio.run(measure(shape, folder, replace(PLAN, rounds=5, budget_s=0.0, requests=(1,))))
    assert [len(rounds) for rounds in found.rates.values()] == [1, 1]


def test_what_does_not_fit_is_left_out_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle(SHAPES["tiny-qwen"], PLAN, tmp_path) is None
    monkeypatch.setattr("benchmarks.families.SPARE_BYTES", 1 << 60)
    assert "tiny-qwen was left out: two copies in float32" in str(obstacle(SHAPES["tiny-qwen"], PLAN, tmp_path))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("SmolVLM2-256M", 256),
        ("SmolVLM2-500M", 507),
        ("SmolVLM2-2.2B", 2250),
        ("Qwen2.5-VL-3B", 3750),
        ("Qwen2.5-VL-7B", 8290),
        ("Llama-3.2-Vision-11B", 10670),
    ],
)
def test_the_true_shapes_have_as_many_weights_as_the_models_are_known_for(
    name: str, millions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    monkeypatch.setattr("benchmarks.shapes._save", lambda tensors, folder: None)
    folder = write_shape(shape, tmp_path / "model")
    model = outline(shape, folder)
    counted = sum(weight.numel() for weight in model.parameters())  # tied ones once
    assert counted == pytest.approx(millions * 1e6, rel=0.03)
    assert weights(shape) == pytest.approx(counted, rel=0.05)
    assert decode_bytes(model, shape.tied, 2) < 2 * counted
