"""What this machine, or the container that we are in, leaves us: memory, processors, open files."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CONTAINER = Path("/sys/fs/cgroup")
"""Where a container's limits stand (cgroup v2)."""
_OPEN_FILES = 65_536
"""Enough for any number of connections; where there is no bound, some systems want one named."""
_MOST_HEAPS = -8
"""M_ARENA_MAX of glibc's malloc.h."""


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


def keep_few_heaps() -> None:
    """Let threads share heaps, as many as there are cores: glibc makes eight times as many, each of which keeps what it
    once held, so that a server grows for hours."""
    with suppress(AttributeError):  # as above
        ctypes.CDLL(None).mallopt(_MOST_HEAPS, max(2, os.cpu_count() or 2))


def allow_open_files() -> None:
    """Take as many open files as the system gives without being asked twice: often it begins with fewer than the
    connections that may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def usable_cores() -> int:
    """Physical cores that may run us all the time: no more than we are bound to, nor than the container's share."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    try:
        quota, period = (int(word) for word in (_CONTAINER / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no container, or one without a limit
        return cores
    return max(1, min(cores, quota // period))
