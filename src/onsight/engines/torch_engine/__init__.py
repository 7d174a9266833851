"""The torch engine: continuous batching over transformers' own model classes, one thread, one model."""

from onsight.engines.torch_engine.embedding import TorchEmbedEngine
from onsight.engines.torch_engine.engine import TorchEngine
from onsight.engines.torch_engine.settings import TorchSettings

__all__ = ["TorchEmbedEngine", "TorchEngine", "TorchSettings"]
