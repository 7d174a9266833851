"""The model families that the torch engine can run, by the name that their card gives."""

from __future__ import annotations

from pathlib import Path

import torch

from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.vocabulary import Vocabulary


def load_family(
    name: str, folder: Path, vocabulary: Vocabulary, device: torch.device, dtype: torch.dtype, progress: Progress | None
) -> Family:
    """Load the checkpoint in `folder` as a model of family `name`. Raises StartError.

    Each family is imported only when it is asked for: transformers' modules are slow to import.
    """
    match name:
        case "smolvlm":
            from onsight.engines.torch_engine.families.smolvlm import SmolVLM

            return SmolVLM(folder, vocabulary, device, dtype, progress)
        case "qwen_vl":
            from onsight.engines.torch_engine.families.qwen_vl import QwenVL

            return QwenVL(folder, vocabulary, device, dtype, progress)
        case _:
            raise StartError(f"the torch engine has no family {name!r}; it has smolvlm and qwen_vl")
