"""The CPU's benchmark on a tiny shape: every side gives figures, and the page of what few bits cost has its tables."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import few_bits, large
from benchmarks.cpu import SIDES, Effort, Found, Measured, measure, obstacle, parse, read, report
from benchmarks.llama_side import KINDS
from benchmarks.shapes import SHAPES, shortened, write_shape
from onsight.engines.torch_engine.quantize import int8_is_exact
from tests.engines.fidelity import FAMILIES

pytestmark = [pytest.mark.model, pytest.mark.skipif(not int8_is_exact(), reason="8 bits need VNNI")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Found]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shapes")
    shapes = {side: SHAPES["tiny-smolvlm" if side in KINDS else "tiny-mllama"] for side in SIDES}
    for name in ("tiny-smolvlm", "tiny-mllama"):
        write_shape(SHAPES[name], folder / name)
    return {
        (shape.name, side): asyncio.run(measure(side, shape, folder / shape.name, Effort(3, 1, 1)))
        for side, shape in shapes.items()
    }


def test_every_side_is_measured(found: dict[tuple[str, str], Found]) -> None:
    for (_, side), one in found.items():
        assert min(*one.prefill.values(), *one.decode.values(), one.first_s, one.load_s) > 0
        assert (one.encode_s is None) == (side in ("generate", *KINDS))
        assert one.peak >= one.resident > one.anonymous > 0


def test_the_report_has_a_row_a_side_and_the_aim(found: dict[tuple[str, str], Found]) -> None:
    measured = {key: Measured(one, "abc", "today") for key, one in found.items()}
    made = report(measured, ["Something was left out."], parse([]))
    assert [row[1] for row in made.tables[0].rows] == list(SIDES)
    assert all(len(row) == len(made.tables[0].columns) for row in made.tables[0].rows)
    assert [aim.wanted for aim in made.aims] == [2.0]
    assert made.notes[0] == "Something was left out."


def test_what_was_measured_is_kept_for_a_run_that_goes_on(found: dict[tuple[str, str], Found]) -> None:
    one = next(iter(found.values()))
    assert read(json.dumps(asdict(one))) == one


def test_what_llama_cpp_does_not_run_is_left_out() -> None:
    assert "llama.cpp does not run it" in str(obstacle("q8_0", SHAPES["tiny-mllama"]))


def test_what_does_not_fit_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle("float32", SHAPES["tiny-mllama"]) is None
    monkeypatch.setattr("benchmarks.cpu.SPARE_BYTES", 1 << 60)
    assert "tiny-mllama, int4: left out, it takes about" in str(obstacle("int4", SHAPES["tiny-mllama"]))


def test_a_shorter_decoder_keeps_the_cross_attention_it_has() -> None:
    text = shortened(SHAPES["Llama-3.2-Vision-11B"], 10).text
    assert (text["num_hidden_layers"], text["cross_attention_layers"]) == (10, [3, 8])


def test_a_large_model_is_reported_with_its_memory_and_its_layers(tmp_path: Path) -> None:
    large.main(["--shape", "tiny-mllama", "--models", str(tmp_path), "--out", str(tmp_path)])
    told = json.loads((tmp_path / "large.json").read_text())
    memory, layers = told["tables"]
    assert [row[0].split(",")[0] for row in memory["rows"]] == [
        "loaded",
        "a short question answered",
        "a picture looked at and two tokens written",
    ]
    assert all(row[4] >= row[2] > row[3] > 0 for row in memory["rows"])
    assert [row[1] for row in layers["rows"]] == ["text", "picture", "text", "picture"]
    assert all(reading > 0 and writing > 0 for _, _, reading, writing in layers["rows"])
    assert told["aims"] == []  # they are the whole model's


def test_the_page_of_costs_has_its_tables(tmp_path: Path) -> None:
    lines = asyncio.run(few_bits.measure(1))
    assert [line.splitlines()[0] for line in lines if line.startswith("## ")] == [
        "## Peek's evaluation, right in %",
        "## Logits, beside float32's",
        "## Layers' outputs: errors, beside the outputs' own size, in %",
        "## Peek's weights: errors, beside the weights' own size, in %",
    ]
    assert sum(line.startswith("| Peek |") for line in lines) == 2 + 4
    outputs = [
        line.split(" | ") for line in lines[lines.index("") :] if line.startswith("| tiny") and line.count("|") == 5
    ]
    assert {cells[0].removeprefix("| ") for cells in outputs} == {f"tiny {kind.title}" for kind in FAMILIES.values()}
    assert all(0 < float(cells[2]) < float(cells[3].removesuffix(" |")) < 60 for cells in outputs)


def test_the_aim_is_held_against_the_row_that_loses_most() -> None:
    whole = {row: (92, 100) for row, _ in few_bits.ROWS}
    lost = {row: (90 if row == few_bits.ROWS[3][0] else 95, 100) for row, _ in few_bits.ROWS}
    assert (few_bits.loss(whole, lost).reached, few_bits.loss(whole, lost).met) == (2.0, True)
    lost[few_bits.ROWS[0][0]] = (89, 100)
    assert (few_bits.loss(whole, lost).reached, few_bits.loss(whole, lost).met) == (3.0, False)


def test_screens_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*others: object) -> list[object]:
        return []

    monkeypatch.setattr(few_bits, "ask", nothing)
    monkeypatch.setattr(few_bits, "_LOT", 1)
    asked, _ = asyncio.run(few_bits.ask_about_screens(3, minutes=0.0))
    assert len({id(one.screen) for one in asked}) == 1
