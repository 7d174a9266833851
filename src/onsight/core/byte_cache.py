"""What was worked out once and may be asked for again, as much of it as some bytes hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Least recently used first out, bounded in bytes; used by several threads at once."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` = 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def find(self, key: str) -> T | None:
        """What was kept under `key`, which counts as a hit, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            self.hits += 1
            return found[0]

    def keep(self, key: str, value: T, size: int) -> None:
        """Keep `value`, of `size` bytes, if it fits at all; counts as a miss."""
        with self._lock:
            self.misses += 1
            if key in self._entries or size > self._max_bytes:
                return
            self._entries[key] = (value, size)
            self.bytes += size
            while self.bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self.bytes -= freed
