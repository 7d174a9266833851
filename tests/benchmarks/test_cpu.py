"""The CPU's benchmark on a tiny shape: every side gives figures, and the page of what few bits cost has its tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from benchmarks import few_bits
from benchmarks.cpu import SIDES, Effort, Found, measure, obstacle, parse, report
from benchmarks.shapes import SHAPES, shortened, write_shape
from onsight.engines.torch_engine.quantize import int8_is_exact

pytestmark = [pytest.mark.model, pytest.mark.skipif(not int8_is_exact(), reason="8 bits need VNNI")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Found]:
    torch.set_num_threads(1)
    shape = SHAPES["tiny-mllama"]
    folder = write_shape(shape, tmp_path_factory.mktemp("shapes") / shape.name)
    return {(shape.name, side): asyncio.run(measure(side, shape, folder, Effort(3, 1, 1))) for side in SIDES}


def test_every_side_is_measured(found: dict[tuple[str, str], Found]) -> None:
    for (_, side), one in found.items():
        assert min(*one.prefill.values(), *one.decode.values(), one.first_s, one.load_s) > 0
        assert (one.encode_s is None) == (side == "generate")
        assert one.peak >= one.resident > one.anonymous > 0


def test_the_report_has_a_row_a_side_and_the_aim(found: dict[tuple[str, str], Found]) -> None:
    made = report(found, ["Something was left out."], parse([]))
    assert [row[1] for row in made.tables[0].rows] == list(SIDES)
    assert all(len(row) == len(made.tables[0].columns) for row in made.tables[0].rows)
    assert [aim.wanted for aim in made.aims] == [2.0]
    assert made.notes[0] == "Something was left out."


def test_what_does_not_fit_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle("float32", SHAPES["tiny-mllama"]) is None
    monkeypatch.setattr("benchmarks.cpu.SPARE_BYTES", 1 << 60)
    assert "tiny-mllama, int4: left out, it takes about" in str(obstacle("int4", SHAPES["tiny-mllama"]))


def test_a_shorter_decoder_keeps_the_cross_attention_it_has() -> None:
    text = shortened(SHAPES["Llama-3.2-Vision-11B"], 10).text
    assert (text["num_hidden_layers"], text["cross_attention_layers"]) == (10, [3, 8])


def test_the_page_of_costs_has_its_tables(tmp_path: Path) -> None:
    lines = asyncio.run(few_bits.measure(1))
    assert [line.splitlines()[0] for line in lines if line.startswith("## ")] == [
        "## Peek's evaluation, right in %",
        "## Logits, beside float32's",
        "## Peek's weights: errors, beside the weights' own size, in %",
    ]
    assert sum(line.startswith("| Peek |") for line in lines) == 2
    assert sum(line.startswith("| model.text_model.layers.") for line in lines) == 16
