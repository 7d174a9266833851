"""`verify` finds that the engine computes what transformers computes, and says so when it does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onsight.core.errors import StartError
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.verify import Compared, Report, verify
from onsight.models.card import find_card
from tests.tiny_models import write_smolvlm

pytestmark = pytest.mark.model

GOOD = Compared("a picture", 10, True, 0.0, 1e-6, 17, 17)


def check(folder: Path, **settings: object) -> Report:
    chosen = TorchSettings(**{"device": "cpu", "threads": 1} | settings)  # type: ignore[arg-type]
    return verify(folder, find_card(str(folder), folder), chosen)


@pytest.mark.parametrize("name", ["smolvlm", "qwen", "mllama"])
def test_a_family_with_a_class_in_transformers_is_compared_with_it(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    report = check(folder)
    assert report.passed
    assert report.tensors == len(load_file(folder / "model.safetensors"))
    assert (report.device, report.dtype, report.tolerance) == ("cpu", "float32", 1e-4)
    picture, words = report.compared
    assert (picture.name, words.name) == ("a picture", "text only")
    assert picture.pixel_difference == 0.0
    assert words.pixel_difference is None
    for one in report.compared:
        assert one.same_ids
        # Small, and there at all: two computations were compared, not one with itself.
        assert 0 < one.logit_difference < 1e-4
        assert (one.same_tokens, one.positions) == (17, 17)
    for side in (report.ours, report.theirs):
        assert side is not None
        assert side.tokens_per_s > 0
        assert side.peak_bytes > 100 << 20


def test_a_family_without_a_class_in_transformers_has_its_tensors_checked_alone(phi3: Path) -> None:
    report = check(phi3)
    assert report.passed
    assert report.tensors == len(load_file(phi3 / "model.safetensors"))
    assert (report.compared, report.ours, report.theirs) == ((), None, None)


def test_half_precision_has_a_wider_tolerance(smolvlm: Path) -> None:
    report = check(smolvlm, dtype="bfloat16")
    assert report.passed
    assert (report.dtype, report.tolerance) == ("bfloat16", 0.5)


@pytest.mark.parametrize(
    "difference",
    [
        {"same_ids": False},
        {"pixel_difference": 0.01},
        {"pixel_difference": math.inf},
        {"logit_difference": 2e-4},
        {"logit_difference": math.nan},
    ],
)
def test_one_difference_is_enough_to_fail(difference: dict[str, object]) -> None:
    report = Report(10, "cpu", "float32", 1e-4, (GOOD, dataclasses.replace(GOOD, name="text only")))
    assert report.passed
    wrong = dataclasses.replace(GOOD, **difference)  # type: ignore[arg-type]
    assert not dataclasses.replace(report, compared=(GOOD, wrong)).passed


def test_a_tensor_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.text_model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(StartError, match=r"model\.text_model\.norm\.weight holds NaN"):
        check(folder)


def test_a_context_that_is_too_short_for_the_prompts_is_said(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "model", context=64)
    with pytest.raises(StartError, match="the model was made for 64"):
        check(folder)
