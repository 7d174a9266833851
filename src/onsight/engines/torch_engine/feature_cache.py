"""Features of pictures already encoded, so that a second question about one costs no second look."""

from __future__ import annotations

import torch

from onsight.core.byte_cache import ByteCache


class FeatureCache(ByteCache[torch.Tensor]):
    """Features [tokens, hidden]; used by the pool and by the thread that encodes.

    Keys are `ImagePlan.key`: SHA-256 of the content and the settings under which it was processed.
    """

    def store(self, key: str, features: torch.Tensor) -> torch.Tensor:
        """Keep a copy of its own (not a view that would hold a whole batch alive) and return it."""
        owned = features.clone()
        self.keep(key, owned, owned.numel() * owned.element_size())
        return owned
