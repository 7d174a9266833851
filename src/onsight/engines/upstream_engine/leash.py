"""Runs a program that does not notice when we are gone, and ends it and what it started then; run as a script.

`python -I leash.py PROGRAM ARGUMENTS...`, in a process group of its own, with standard input held open by whoever
started it: when that is closed, even by SIGKILL, the whole group is killed. Else it ends as the program ends. The first
line there is a JSON object: what the program's environment holds besides ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_STOPS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


def leashed(arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` so; what is secret goes into the first line, which only we can read."""
    return [sys.executable, "-I", __file__, *arguments]


def main() -> None:
    for name, value in json.loads(sys.stdin.readline() or "{}").items():
        os.putenv(name, value)
    # Handlers and not SIG_IGN, which the program would inherit. It has these signals too, as one of the group.
    for number in _STOPS:
        signal.signal(number, lambda *_: None)
    try:
        program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_end_with_leash)
    except OSError as error:
        sys.exit(f"{sys.argv[1]} cannot be run: {error.strerror}")
    threading.Thread(target=_follow, daemon=True).start()
    code = program.wait()
    if code < 0:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    # Without the interpreter's end, which would wait for the thread's read.
    os._exit(code)


def _end_with_leash() -> None:
    """In the program's process: it is killed too where this script alone is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _follow() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
