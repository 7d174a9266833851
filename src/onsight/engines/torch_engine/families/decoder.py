"""The language model of a family: transformers' own layers, driven over our key-value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from onsight.engines.torch_engine.families.fused import FusedLayer, signed
from onsight.engines.torch_engine.families.key_values import KeyValues, KeyValueShape
from onsight.engines.torch_engine.families.product import AnyLinear, product
from onsight.engines.torch_engine.quantize import count_weights


class Decoder:
    """Token embedding, layers, final norm and output head of a transformers language model.

    The layers are fused one by one out of transformers' own, which are let go, so that weights are never held twice.
    """

    def __init__(self, text_model: nn.Module, head: AnyLinear, shape: KeyValueShape, axes: int) -> None:
        """`text_model` has transformers' usual parts; `axes`: 1 for plain rotary positions, 3 for Qwen's."""
        self._embed = text_model.get_submodule("embed_tokens")
        self._norm = text_model.get_submodule("norm")
        norm = self._norm.get_parameter("weight")  # of the products and the embedding some may be held otherwise
        self._rotary = text_model.get_submodule("rotary_emb")
        self._head = product(head)
        self.shape = shape
        self.axes = axes
        self.vocab_rows = head.out_features
        """How many logits there are, which may differ from how many tokens have text."""
        self.device = norm.device
        self.dtype = norm.dtype
        self.project: Callable[[torch.Tensor], torch.Tensor] | None = None
        """One picture's [tokens, hidden] as [layers, 2, kv heads, tokens, dim], where cross-attention sees pictures."""
        layers = text_model.get_submodule("layers")
        self.layer_weights = count_weights(layers.get_submodule("0"))
        """Numbers in the first layer."""
        for name, layer in list(layers.named_children()):
            layers.add_module(name, self._fuse(layer, int(name)))
        self._layers = list(layers.children())

    def _fuse(self, layer: nn.Module, place: int) -> nn.Module:
        """The layer that runs in the place of transformers' `layer`, the `place`-th."""
        return FusedLayer(layer, self.shape.heads, self.shape.dim, place)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[rows, tokens] -> [rows, tokens, hidden]."""
        embedded: torch.Tensor = self._embed(token_ids)
        return embedded

    def forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, key_values: KeyValues
    ) -> torch.Tensor:
        """[rows, tokens, hidden] -> the same, after every layer and the final norm.

        `positions`: [axes, rows, tokens]. `mask`: [rows, 1, tokens, seen], True where a query may look; None is causal.
        """
        rotary = signed(*self._rotary(embeds, positions if self.axes > 1 else positions[0]))
        hidden = embeds
        for layer in self._layers:
            hidden = layer(hidden, mask, rotary, key_values)
        normed: torch.Tensor = self._norm(hidden)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> [rows, vocab_rows], float32."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()
