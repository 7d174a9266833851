"""LongRoPE for a batch of requests: each turns by short or long factors for its own length, not its neighbours'."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.models.phi3.configuration_phi3 import Phi3Config

LONG = 1 << 24
"""Added to the positions of a request that reads with the long factors; no context is that long."""


class LongRope(nn.Module):
    """Two sets of frequencies: up to `short_tokens` tokens in all a request uses the one, past them the other.

    transformers chooses by the longest sequence of the batch, and at the crossing computes everything again. Here the
    choice is written into the positions, so that rows of both kinds share a forward and no row's keys change kind.
    """

    def __init__(self, config: Phi3Config) -> None:
        """From a configuration whose `rope_parameters` say longrope."""
        super().__init__()
        rope = config.rope_parameters
        self.short_tokens = int(rope["original_max_position_embeddings"])
        dim = int(config.hidden_size // config.num_attention_heads * rope.get("partial_rotary_factor", 1.0))
        powers = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        bases = float(rope["rope_theta"]) ** powers
        short, long = (torch.tensor(rope[name], dtype=torch.float32) for name in ("short_factor", "long_factor"))
        self._short = nn.Buffer(1.0 / (short * bases), persistent=False)  # [dim / 2]
        self._long = nn.Buffer(1.0 / (long * bases), persistent=False)
        self._scale = _attention_factor(rope, config.max_position_embeddings, self.short_tokens)

    def forward(self, embeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [rows, tokens, dim] for `positions` [rows, tokens], in the number format of `embeds`."""
        long = positions >= LONG
        frequencies = torch.where(long[..., None], self._long, self._short)  # [rows, tokens, dim / 2]
        angles = (positions - LONG * long).float()[..., None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self._scale).to(embeds.dtype), (angles.sin() * self._scale).to(embeds.dtype)


def _attention_factor(rope: dict[str, float], longest: int, short_tokens: int) -> float:
    """What cosines and sines are multiplied by, whichever factors are used."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    stretch = rope.get("factor") or longest / short_tokens
    return 1.0 if stretch <= 1.0 else math.sqrt(1 + math.log(stretch) / math.log(short_tokens))
