"""What a request is told when its work breaks; what happened stands in the server's log."""

from __future__ import annotations

import torch

from onsight.core.errors import EngineFailed, OutOfMemory

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What PyTorch says, in a plain RuntimeError, when the machine has no room for a tensor."""


def failure_of(error: BaseException | None) -> EngineFailed:
    """The error for the request that `error` broke."""
    plain = isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or plain:
        return OutOfMemory()
    return EngineFailed("the engine failed on this request; the server's log says why")
