"""What this machine, or the container that we are in, leaves us: memory and processors."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CONTAINER = Path("/sys/fs/cgroup")
"""Where a container's limits stand (cgroup v2)."""


def free_memory() -> int:
    """Bytes that are free of this machine's memory, or of the container's."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CONTAINER / "memory.max").read_text())
        used = dict(line.split(maxsplit=1) for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        return min(free, limit - int(used["anon"]))
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return free


def give_back_memory() -> None:
    """Give the system what was freed and is still kept for later: reading an 11B in few bits leaves some gigabytes."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """Physical cores that may run us all the time: no more than we are bound to, nor than the container's share."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    try:
        quota, period = (int(word) for word in (_CONTAINER / "cpu.max").read_text().split())
    except (OSError, ValueError):  # as above
        return cores
    return max(1, min(cores, quota // period))
