"""The model families that the torch engine can run, by the name that their card gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onsight.core.errors import StartError
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from onsight.engines.torch_engine.families.colqwen import ColQwen

LoadFamily = Callable[[str, Checkpoint, Vocabulary], Family]
LoadEmbedder = Callable[[str, Checkpoint], "ColQwen"]


def load_family(name: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Family:
    """Load `checkpoint` as a model of family `name`. Raises StartError.

    Each family is imported only when it is asked for: transformers' modules are slow to import.
    """
    match name:
        case "smolvlm":
            from onsight.engines.torch_engine.families.smolvlm import SmolVLM

            return SmolVLM(checkpoint, vocabulary)
        case "qwen_vl":
            from onsight.engines.torch_engine.families.qwen_vl import QwenVL

            return QwenVL(checkpoint, vocabulary)
        case "mllama":
            from onsight.engines.torch_engine.families.mllama import Mllama

            return Mllama(checkpoint, vocabulary)
        case "phi3_vision":
            from onsight.engines.torch_engine.families.phi3_vision import Phi3Vision

            return Phi3Vision(checkpoint, vocabulary)
        case _:
            known = "smolvlm, qwen_vl, mllama and phi3_vision"
            raise StartError(f"the torch engine has no family {name!r}; it has {known}")


def load_embedder(name: str, checkpoint: Checkpoint) -> ColQwen:
    """As `load_family`, for the one family that makes vectors, not text."""
    if name != "colqwen":
        raise StartError(f"the torch engine makes no vectors with family {name!r}; it does with colqwen")
    from onsight.engines.torch_engine.families.colqwen import ColQwen

    return ColQwen(checkpoint)
