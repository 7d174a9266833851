"""llama.cpp's blocks of 256 numbers, Q4_K and Q6_K, which the package `gguf` reads but does not write.

Scales are taken from each group's extremes; llama.cpp's own tool searches for better ones. The layout is the same.
"""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Stored

_BLOCK = 256
_FEW = np.float32(1e-10)


def quantize(weight: np.ndarray, kind: Stored) -> np.ndarray:
    """What `gguf.quants.quantize` does, Q4_K and Q6_K included: [rows, columns] -> [rows, bytes]."""
    own = {Stored.Q4_K: _q4_k, Stored.Q6_K: _q6_k}.get(kind)
    return gguf.quants.quantize(weight, kind) if own is None else own(weight)


def kind_of_mixture(name: str, columns: int, layers: int, tied: bool) -> Stored:
    """What llama.cpp's mixture Q4_K_M stores the product `name` as, of a model with so many `layers`.

    `tied`: the table of words is the head as well. Rows that are no multiple of 256 get llama.cpp's kinds for those.
    """
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        more = True
    else:
        _, number, part = [*name.split(".", 2), "", ""][:3]
        more = part in ("attn_v.weight", "ffn_down.weight") and _is_chosen(int(number), layers)
    if columns % _BLOCK:
        return Stored.Q8_0 if more else Stored.Q5_0
    return Stored.Q6_K if more else Stored.Q4_K


def _is_chosen(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first eighth, the last one, and every third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _q4_k(weight: np.ndarray) -> np.ndarray:
    """[rows, columns], columns a multiple of 256 -> [rows, bytes]: in 256 numbers 8 groups with scale and minimum."""
    groups = weight.astype(np.float32).reshape(-1, 8, 32)
    low = np.minimum(groups.min(-1), 0)
    steps, depths = (groups.max(-1).clip(0) - low) / 15, -low  # a number is step * code - depth
    step, step_codes = _coded(steps, 63)
    depth, depth_codes = _coded(depths, 63)
    steps = step * step_codes
    shifted = groups + (depth * depth_codes)[..., None]
    codes = np.rint(shifted / np.maximum(steps, _FEW)[..., None]).clip(0, 15).astype(np.uint8)
    first, last = np.split(step_codes, 2, 1), np.split(depth_codes, 2, 1)
    scales = np.concatenate(
        [
            first[0] | (first[1] >> 4) << 6,
            last[0] | (last[1] >> 4) << 6,
            (first[1] & 15) | (last[1] & 15) << 4,
        ],
        1,
    )
    pairs = codes.reshape(-1, 4, 2, 32)
    made = (_half(step), _half(depth), scales, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128))
    return np.concatenate(made, 1).reshape(len(weight), -1)


def _q6_k(weight: np.ndarray) -> np.ndarray:
    """As `_q4_k`: 16 groups with a scale each, and no minimum."""
    groups = weight.astype(np.float32).reshape(-1, 16, 16)
    step, step_codes = _coded(np.abs(groups).max(-1) / 31, 127)
    steps = np.maximum(step * step_codes, _FEW)[..., None]
    codes = (np.rint(groups / steps).clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    lows = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], -1)
    highs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    made = (lows.reshape(-1, 128), highs.reshape(-1, 64), step_codes, _half(step))
    return np.concatenate(made, 1).reshape(len(weight), -1)


def _coded(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups' values [blocks, groups] as a float of 16 bits a block [blocks, 1] and whole numbers up to `most`."""
    one = (values.max(-1, keepdims=True) / most).astype(np.float16).astype(np.float32)
    return one, np.rint(values / np.maximum(one, _FEW)).clip(0, most).astype(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    """[blocks, 1] -> [blocks, 2 bytes]."""
    return values.astype(np.float16).view(np.uint8)
