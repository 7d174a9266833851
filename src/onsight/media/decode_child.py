"""The process beside the server in which files of strangers are opened: started when it is first needed, asked by many
threads, started again when it dies (`decode_process.py` is what runs there)."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

from onsight.core.errors import Unavailable
from onsight.media.verdict import Refused, Verdict

_log = logging.getLogger(__name__)

_PROCESS = Path(__file__).with_name("decode_process.py")
MEMORY_BYTES = 2 << 30
"""Addresses that opening one file may take, those of the loaded decoders included."""
WAIT_TIMES = 10
"""A copy that waits for a busy machine's processors gets so many times its processor time by the clock."""
# Nothing of the server's own, in which its key may stand. NumPy must not begin threads, which no copy would have. With
# large pages of memory a copy has fewer to ask for, which is most of what it costs (glibc alone reads this).
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_FACTS_BYTES = 1 << 16
_TAKEN_WITHIN_S = 60.0
_ENDED_WITHIN_S = 5.0
_FILES_FAULT = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)

T = TypeVar("T")


class DecodeChild:
    """Opens files apart from the server; used by several threads at once."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, wait_times: int = WAIT_TIMES) -> None:
        self._memory_bytes, self._wait_times = memory_bytes, wait_times
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._closed = False

    def ask(
        self, work: str, task: Mapping[str, object], data: bytes, cpu_s: float, read: Callable[[IO[bytes]], T]
    ) -> T:
        """What `read` makes of the answer to `work` done on a file (`load` in `decode_process.py` lists them).

        The file may take `cpu_s` seconds of processor time. Raises Refused when it cannot be opened, Unavailable when
        that was nobody's fault. `read` must do with an answer that is cut short: only then is it known why.
        """
        (theirs, ours), (our_answer, their_answer), (our_status, their_status) = _pipes(3)
        with ExitStack() as stack:
            given = stack.enter_context(open(ours, "wb"))
            answer = stack.enter_context(open(our_answer, "rb"))
            status = stack.enter_context(open(our_status, "rb"))
            try:
                self._hand_over(work, cpu_s, (theirs, their_answer, their_status))
            finally:
                for end in (theirs, their_answer, their_status):
                    os.close(end)
            with suppress(BrokenPipeError), given:
                given.write(json.dumps({"bytes": len(data), "task": task}).encode() + b"\n")
                given.write(data)
            made = read(answer)
            # A copy that would say more than was asked for must not wait for a reader.
            answer.close()
            _judge(work, status.read(4))
        return made

    def facts(self, work: str, task: Mapping[str, object], data: bytes, cpu_s: float) -> Any:
        """What `work` tells of a file, as JSON; see `ask`."""
        return json.loads(self.ask(work, task, data, cpu_s, lambda answer: answer.read(_FACTS_BYTES)))

    def close(self) -> None:
        """End the process and what is open in it. May be called twice."""
        with self._lock:
            self._closed = True
            self._end()

    def _hand_over(self, work: str, cpu_s: float, pipes: Sequence[int]) -> None:
        cpu_s = max(1, math.ceil(cpu_s))
        limits = {"cpu_s": cpu_s, "wall_s": cpu_s * self._wait_times, "memory_bytes": self._memory_bytes}
        message = json.dumps({"work": work, **limits}).encode()
        with self._lock:
            # It may have died since the last file; a second time in a row is another matter.
            for _ in range(2):
                orders = self._start()
                with suppress(OSError):
                    socket.send_fds(orders, [message], pipes)
                    if orders.recv(1):
                        return
                self._end()
        raise RuntimeError("the process that opens files does not start, or dies at once")

    def _start(self) -> socket.socket:
        if self._closed:
            raise Unavailable("the server is stopping; send the request again later")
        if self._running is None:
            try:
                self._running = _begin()
            except OSError as error:
                raise _no_room(error) from None
        return self._running[1]

    def _end(self) -> None:
        if self._running is not None:
            process, orders = self._running
            self._running = None
            orders.close()
            try:
                process.wait(_ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _begin() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process; it, and the socket on which it takes orders. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as failing:
        failing.callback(ours.close)
        ours.settimeout(_TAKEN_WITHIN_S)
        # A session of its own: Ctrl-C is for the server, which lets running requests finish.
        process = subprocess.Popen(
            [sys.executable, "-I", str(_PROCESS)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        failing.pop_all()
    return process, ours


def _pipes(count: int) -> list[tuple[int, int]]:
    """The (reading, writing) ends of so many pipes. Raises Unavailable when there are no more, and keeps none then."""
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())
    except OSError as error:
        for end in chain.from_iterable(made):
            os.close(end)
        raise _no_room(error) from None
    return made


def _no_room(error: OSError) -> Unavailable:
    _log.warning("no file can be opened apart: %s", error.strerror)
    return Unavailable(f"the server cannot open the file now ({error.strerror}); send the request again soon")


def _judge(work: str, told: bytes) -> None:
    """Raise what a copy's exit code, 4 bytes, stands for; none came when the process itself died."""
    code = struct.unpack("<i", told)[0] if len(told) == 4 else -signal.SIGKILL
    if not code:
        return
    if code == -signal.SIGXCPU:
        raise Refused(Verdict.SLOW)
    if code > 0:
        raise Refused(Verdict(code) if code in tuple(Verdict) else Verdict.BROKEN)
    _log.warning("the copy that had to %s was ended by signal %d", work, -code)
    if -code in _FILES_FAULT:
        raise Refused(Verdict.BROKEN)
    raise Unavailable("the process that opened the file was ended from outside; send the request again")
