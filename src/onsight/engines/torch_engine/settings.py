"""How a torch engine is to run: device, number format, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceChoice = Literal["auto", "cpu", "gpu", "cuda", "mps", "cuda-or-cpu"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]
QuantizeChoice = Literal["auto", "none", "int4", "int8"]


@dataclass(frozen=True, slots=True)
class TorchSettings:
    """What the operator chose; "auto" and None leave it to the machine.

    `max_model_len`: most tokens of prompt and answer together; None is the checkpoint's own limit, lowered when memory
    is short; of an embedding model, most tokens of a query or a page, None the checkpoint's own limit, but no more than
    a batch has. `max_num_seqs`: requests that run at once, each in a slot of its own. `image_cache_bytes`: bound of the
    image feature cache. `kv_cache_tokens`: places for keys and values over all slots; None is what free memory holds.
    `stall_s`: no step takes so long. `max_queue_tokens`: tokens of all prompts that are prepared and run, the others
    wait; None is four times what the key-value cache holds. `threads`: CPU threads of one forward; None is torch's own
    choice. `quantize`: bits of the decoder's weights; "auto" is none, and int4 on a CPU where the weights would fill
    most of the free memory.
    """

    device: DeviceChoice = "auto"
    dtype: DtypeChoice = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 8
    image_cache_bytes: int = 256 << 20
    kv_cache_tokens: int | None = None
    threads: int | None = None
    stall_s: float = 300.0
    max_queue_tokens: int | None = None
    quantize: QuantizeChoice = "auto"
