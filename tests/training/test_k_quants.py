"""Blocks that we write are read by the package of llama.cpp's authors, and go where its own mixture puts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Stored

from onsight.models.gguf_header import read_header
from training.export_gguf import MIXTURE, export_gguf
from training.k_quants import kind_of_mixture, quantize
from training.model import BUNDLED


@pytest.mark.parametrize(("kind", "steps", "most"), [(Stored.Q4_K, 15, 0.085), (Stored.Q6_K, 62, 0.025)])
def test_numbers_come_back_within_half_a_step(kind: Stored, steps: int, most: float) -> None:
    """A step is its group's range by `steps`; scales of 6 and 8 bits make it a little larger, or move it."""
    weight = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32) * 0.05
    weight[3] *= 100  # of another size than its neighbours
    made = gguf.quants.dequantize(quantize(weight, kind), kind)
    group = 32 if kind is Stored.Q4_K else 16
    apart = np.abs(made - weight).reshape(-1, group)
    wide = weight.reshape(-1, group)
    reach = (wide.max(-1) - wide.min(-1)) if kind is Stored.Q4_K else 2 * np.abs(wide).max(-1)
    assert (apart.max(-1) <= 0.7 * reach / steps).all()
    assert (np.linalg.norm(made - weight, axis=1) < most * np.linalg.norm(weight, axis=1)).all()


@pytest.mark.parametrize("kind", [Stored.Q4_K, Stored.Q6_K])
@pytest.mark.parametrize("number", [0.0, 0.25, -0.25])
def test_a_block_of_one_number_is_kept(kind: Stored, number: float) -> None:
    weight = np.full((2, 256), number, np.float32)
    made = gguf.quants.dequantize(quantize(weight, kind), kind)
    np.testing.assert_allclose(made, weight, rtol=1e-3)


def test_the_mixture_is_that_of_llama_cpp() -> None:
    """In a model of 32 layers half of the values and of the downs have 6 bits: 0-3, every third of 6-27, 28-31."""
    chosen = [
        layer
        for layer in range(32)
        if kind_of_mixture(f"blk.{layer}.ffn_down.weight", 512, 32, tied=False) is Stored.Q6_K
    ]
    assert chosen == [0, 1, 2, 3, *range(6, 28, 3), 28, 29, 30, 31]
    assert kind_of_mixture("blk.0.attn_v.weight", 512, 32, tied=False) is Stored.Q6_K
    assert kind_of_mixture("blk.0.attn_q.weight", 512, 32, tied=False) is Stored.Q4_K
    assert kind_of_mixture("output.weight", 512, 32, tied=False) is Stored.Q6_K
    assert kind_of_mixture("token_embd.weight", 512, 32, tied=False) is Stored.Q4_K
    assert kind_of_mixture("token_embd.weight", 512, 32, tied=True) is Stored.Q6_K
    assert kind_of_mixture("blk.0.attn_q.weight", 576, 32, tied=False) is Stored.Q5_0
    assert kind_of_mixture("output.weight", 576, 32, tied=False) is Stored.Q8_0


def test_peek_is_written_in_it(tmp_path: Path) -> None:
    model, _ = export_gguf(BUNDLED, tmp_path, "peek", MIXTURE)
    kinds = Counter(Stored(one.kind) for one in read_header(model).tensors)
    assert kinds == {Stored.Q4_K: 4 * 7 - 4, Stored.Q6_K: 4 + 1, Stored.F32: 4 * 2 + 1}
