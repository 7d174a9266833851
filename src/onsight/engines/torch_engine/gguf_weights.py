"""The tensors of a Llama 3.2 Vision in Ollama's GGUF layout, as if the published safetensors held them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onsight.core.errors import StartError
from onsight.models.gguf_header import GgufTensor, read_header
from onsight.models.gguf_mllama import heads_of, published_name

_NAMES_OF_KINDS = {0: "F32", 1: "F16", 30: "BF16"}
_FEW = "F16"
"""What floats made of few bits are worth: its steps are far below theirs, and float32 would take twice the memory."""
_GATES = ("gate_attn", "gate_ffn", "positional_embedding.gate")
_NEAR_ONE = 1.0 - 2**-24
"""The largest tanh that has a finite inverse in float32."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tensor's header, by the methods that safetensors has for it."""

    tensor: GgufTensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return _NAMES_OF_KINDS.get(self.tensor.kind, _FEW)


class GgufWeights:
    """An open file by the methods of safetensors' `safe_open`, under the published checkpoint's names."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self._query_heads, self._key_heads, self._tower_heads = heads_of(path, header)
        self._tensors = {name: one for one in header.tensors if (name := published_name(one.name)) is not None}
        self._bytes = np.memmap(path, np.uint8, "r")

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> _Shape:
        return _Shape(self._tensors[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        """The tensor in float32, with what Ollama's converter did to its numbers undone."""
        made = torch.from_numpy(self._floats(self._tensors[name]))
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            heads = self._query_heads if name.endswith("q_proj.weight") else self._key_heads
            return _in_halves(made, self._tower_heads if name.startswith("vision_model.") else heads)
        if name.startswith("vision_model.") and name.endswith(_GATES):
            opened = 1.0 - made if name.endswith("gated_positional_embedding.gate") else made
            return torch.atanh(opened.clamp(-_NEAR_ONE, _NEAR_ONE))
        return made

    def _floats(self, one: GgufTensor) -> np.ndarray:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = self._bytes[one.begins : one.begins + one.size].reshape(*one.shape[:-1], -1)
        try:
            return np.array(dequantize(raw, GGMLQuantizationType(one.kind)), np.float32).reshape(one.shape)
        except (ValueError, NotImplementedError):  # what the package says of kinds that it cannot make floats of
            raise StartError(
                f"tensor {one.name} is stored in a form that cannot be read (ggml type {one.kind})"
            ) from None


def open_gguf(path: Path) -> GgufWeights:
    """`path`, to be read. Raises StartError where the package `gguf` is missing, or the file is broken."""
    if importlib.util.find_spec("gguf") is None:
        raise StartError("weights in GGUF files need the package gguf: pip install 'onsight[llama]'")
    return GgufWeights(path)


def _in_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order in which transformers turns them: real parts, then imaginary ones.

    llama.cpp and Ollama turn neighbours, so the converter put each real part's row before its imaginary part's.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
