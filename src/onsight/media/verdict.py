"""What a process that opened a stranger's file says of it: by its exit code, and by nothing else."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """Why a file was not opened. Each kind of file has its own sentence for each of them that it can come to."""

    BROKEN = 3
    """Damaged, cut short, or made to break the decoder."""
    EMPTY = 4
    """Without pages or frames."""
    PASSWORD = 5
    SLOW = 6
    """It takes longer than the file's limit."""
    LARGE = 7
    """It takes more memory than the process may have."""
    TURNED = 8
    """Held at an angle that is no quarter turn."""
    SHORT = 9
    """Most of what the header promises is not there."""
    STRANGE = 10
    """Pixels of a kind that is not read."""


class Refused(Exception):
    """A file was not opened; the module that asked puts it into words."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.name)
        self.verdict = verdict
