"""Products give what `nn.Linear` gives, in whichever layout; fused layers what transformers' own layers give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RotaryEmbedding

from onsight.engines.torch_engine.families.fused import FusedLayer, signed
from onsight.engines.torch_engine.families.key_values import Sight
from onsight.engines.torch_engine.families.product import BlockedLinear, RowLinear, joined, store_in_blocks

pytestmark = pytest.mark.model

ON_X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class Everything:
    """Keys and values of this forward alone: nothing was cached before."""

    sight: Sight | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias)
    return made.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 7), (130,)])
def test_a_product_is_a_linear(bias: bool, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    reference, values = linear(48, 80, bias), torch.randn(*rows, 48)
    for layout in (RowLinear, BlockedLinear) if ON_X86 else (RowLinear,):
        made = layout(reference.weight, reference.bias)(values)
        assert torch.allclose(made, reference(values), atol=1e-5), layout


def test_joined_products_stand_side_by_side() -> None:
    torch.manual_seed(0)
    first, second, values = linear(32, 16, True), linear(32, 48, True), torch.randn(5, 32)
    wanted = torch.cat([first(values), second(values)], dim=-1)
    assert torch.allclose(joined(first, second)(values), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="bias"):
        joined(first, linear(32, 16, False))


@pytest.mark.skipif(not ON_X86, reason="blocks are for x86 processors")
def test_a_whole_module_is_stored_in_blocks() -> None:
    torch.manual_seed(0)
    module, values = (
        nn.Sequential(linear(32, 16, True), nn.Sequential(nn.GELU(), linear(16, 8, False))),
        torch.randn(4, 32),
    )
    wanted = module(values)
    store_in_blocks(module)
    assert [type(part) for part in (module[0], module[1][1])] == [BlockedLinear, BlockedLinear]
    assert torch.allclose(module(values), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "phi3 turned in part"])
def test_a_fused_layer_is_transformers_layer(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    if name == "llama":
        config = LlamaConfig(**sizes, attn_implementation="sdpa")
        layer, rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
    else:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        config = Phi3Config(**sizes, rope_parameters=rope, pad_token_id=0, attn_implementation="sdpa")
        layer, rotary = Phi3DecoderLayer(config, 0), Phi3RotaryEmbedding(config)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.data.normal_(1.0, 0.3)
    hidden, positions = torch.randn(2, 9, 64), torch.arange(9).expand(2, -1)
    with torch.inference_mode():
        angles = rotary(hidden, positions)
        assert angles[0].shape[-1] == (16 if name == "llama" else 8)
        causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
        wanted = layer(hidden, attention_mask=causal, position_embeddings=angles)
        for mask in (None, causal):
            made = FusedLayer(layer, key_value_heads=2, dim=16, place=0)(hidden, mask, signed(*angles), Everything())
            assert (made - wanted).abs().max() < 1e-5
