"""Features of pictures already encoded, so that a second question about one costs no second look."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch


class FeatureCache:
    """Least recently used first out, bounded in bytes; used by the pool and by the model's thread.

    Keys are `ImagePlan.key`: SHA-256 of the content and the settings under which it was processed.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` = 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def find(self, key: str) -> torch.Tensor | None:
        """The features [tokens, hidden], which count as a hit, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self.hits += 1
            return found

    def store(self, key: str, features: torch.Tensor) -> torch.Tensor:
        """Keep a copy of its own (not a view that would hold a whole batch alive) and return it; counts as a miss."""
        owned = features.clone()
        size = owned.numel() * owned.element_size()
        with self._lock:
            self.misses += 1
            if key in self._entries or size > self._max_bytes:
                return owned
            self._entries[key] = owned
            self.bytes += size
            while self.bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.numel() * oldest.element_size()
        return owned
