"""Opens files that strangers made, each in a process of its own; run as a script by `decode_child.py`, never imported.

This process itself reads no such file. It loads a decoder when it is first wanted, and then, for each file, makes a
copy of itself (fork), which the operating system holds to the file's limits and which ends with the file. So a file
costs no start of Python, nothing of it is left when the next one comes, and a crash is one refused file.

Standard input is a socket. Of each file come an `Order` as JSON and the ends of three pipes: the file, after a line of
JSON with what is wanted of it; the answer's bytes; and the copy's exit code (`Verdict`, or a signal's number below 0),
which this process writes, so that no file has a say in it. Each order that was taken is answered with one byte.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

if __name__ == "__main__":
    # "-I" keeps modules of the working directory out, and ours too where they are not installed.
    sys.path.insert(0, str(Path(__file__).parents[2]))

from onsight.media.verdict import Refused, Verdict

_ORDER_BYTES = 1 << 12

Work = Callable[[Any, bytes, BinaryIO], None]
"""Opens a file as its task says and writes the answer. Raises Refused, or whatever a decoder raises."""


class Order(TypedDict):
    """What a file may take: `cpu_s` of processor time, `wall_s` by the clock, `memory_bytes` of addresses."""

    work: str
    cpu_s: int
    wall_s: int
    memory_bytes: int


def load(work: str) -> Work:
    """The function behind an order's word; its decoder is loaded by this."""
    match work:
        case "tell a pdf":
            from onsight.media.pdf_pages import tell_pdf

            return tell_pdf
        case "draw a pdf":
            from onsight.media.pdf_pages import draw_pdf_pages

            return draw_pdf_pages
        case "tell a film":
            from onsight.media.film import tell_film

            return tell_film
        case "draw a film":
            from onsight.media.film import draw_film

            return draw_film
        case "draw a gif":
            from onsight.media.film import draw_gif

            return draw_gif
        case "draw a picture":
            from onsight.media.image import draw_sent_picture

            return draw_sent_picture
        case _:
            raise ValueError(f"no work is called {work!r}")


@dataclass
class _Copy:
    """A copy at work. `status`: the pipe for its exit code. `until_s`: when it is too late; never, once killed."""

    status: int
    until_s: float


class _Foreman:
    """Takes orders, makes copies, and says how each of them ended."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._copies: dict[int, _Copy] = {}

    def run(self) -> None:
        """Until the server has closed its end; copies that are at work then are killed."""
        ended, wake = os.pipe()
        for end in (ended, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        goes_on = True
        while goes_on:
            until_s = min((copy.until_s for copy in self._copies.values()), default=math.inf)
            wait_s = None if until_s == math.inf else max(0.0, until_s - time.monotonic())
            ready, _, _ = select.select([self._orders.fileno(), ended], [], [], wait_s)
            if ended in ready:
                os.read(ended, 1024)
            self._settle()
            if self._orders.fileno() in ready:
                goes_on = self._take()
        for pid in self._copies:
            os.kill(pid, signal.SIGKILL)

    def _settle(self) -> None:
        """Kill what is late, and tell of what has ended."""
        for pid, copy in list(self._copies.items()):
            if copy.until_s <= time.monotonic():
                os.kill(pid, signal.SIGKILL)
                copy.until_s = math.inf
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                late = copy.until_s == math.inf and code == -signal.SIGKILL
                with suppress(BrokenPipeError):
                    os.write(copy.status, struct.pack("<i", Verdict.SLOW if late else code))
                os.close(copy.status)
                del self._copies[pid]

    def _take(self) -> bool:
        """Make a copy for the next order; False when there are no more."""
        message, pipes, _, _ = socket.recv_fds(self._orders, _ORDER_BYTES, 3)
        if not message:
            return False
        order: Order = json.loads(message)
        work = load(order["work"])
        # What was loaded so far is every copy's; a collector that looks at it would make each copy its own.
        gc.freeze()
        given, answer, status = pipes
        pid = os.fork()
        if not pid:
            code = int(Verdict.BROKEN)
            try:
                self._become_copy(status)
                code = _open(order, work, given, answer)
            finally:
                # Whatever a decoder raised, the copy ends here: it must never come to take orders.
                os._exit(code)
        os.close(given)
        os.close(answer)
        self._copies[pid] = _Copy(status, time.monotonic() + order["wall_s"])
        self._orders.sendall(b"+")
        return True

    def _become_copy(self, status: int) -> None:
        """Let go of all that is not this file's business."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._orders.close()
        for other in self._copies.values():
            os.close(other.status)
        os.close(status)


def _open(order: Order, work: Work, given: int, answer: int) -> int:
    """Do the work within its limits; the exit code. What a decoder raises goes through."""
    _bound(order)
    with open(given, "rb") as asked, open(answer, "wb") as out:
        try:
            given_task = json.loads(asked.readline())
            work(given_task["task"], asked.read(given_task["bytes"]), out)
            out.flush()
        except Refused as refused:
            return refused.verdict
        except MemoryError:
            return Verdict.LARGE
    return 0


def _bound(order: Order) -> None:
    """Have the operating system hold this process to its limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (order["cpu_s"], order["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # macOS refuses to bound a process's addresses.
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"], order["memory_bytes"]))


if __name__ == "__main__":
    _Foreman(socket.socket(fileno=0)).run()
