"""A server that we run ourselves as a child process: started, watched, started again, and stopped with us."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from onsight.core.engine import EngineState
from onsight.core.errors import RequestError, StartError
from onsight.engines.upstream_engine.keeper import Check

log = logging.getLogger(__name__)

_REMEMBERED = 12
"""Lines of its log that are told again when it dies before it was ready."""
_LONGEST_LINE = 64 << 10


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What is run, in our own environment. `name`: for the log.

    `first_line`: written to its standard input, which then stays open for as long as we live. `socket`: the unix
    socket that it makes, alone in its folder; both are removed at the end.
    """

    name: str
    arguments: Sequence[str]
    first_line: str = ""
    socket: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what may take, in seconds. `start_s`: without a word in its log until it answers; every `tell_s`
    meanwhile the log says why it does not. `stop_s`: between SIGTERM and SIGKILL.

    `pause_s`, `longest_pause_s`: before it is started again, doubled with each death in a row; a life of `steady_s`
    ends the row. `return_s`: a request may wait for its return. `ask_s`: between two questions whether it is ready.
    `probe_s`: between two whether it still answers, at most half of `stall_s`: without an answer for so long it is
    ended and started again.
    """

    start_s: float = 600.0
    tell_s: float = 30.0
    stop_s: float = 10.0
    pause_s: float = 0.5
    longest_pause_s: float = 30.0
    steady_s: float = 60.0
    return_s: float = 30.0
    ask_s: float = 0.1
    probe_s: float = 5.0
    stall_s: float = 300.0


@dataclass(slots=True)
class _Words:
    """What it said: its last lines, and when it said anything."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    last_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Life:
    """One run of the program."""

    process: asyncio.subprocess.Process
    logging: asyncio.Task[None]
    words: _Words


class Child:
    """See `Keeper`. Ready only while the process lives and after it has given one real answer."""

    def __init__(self, command: ChildCommand, patience: Patience = Patience()) -> None:
        self._command = command
        self._patience = patience
        self._life: _Life | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._state: EngineState = "loading"
        self.restarts_total = 0

    @property
    def state(self) -> EngineState:
        """See `Keeper.state`. One that has just ended is not ready, though nobody has begun to start it again."""
        ended = self._life is not None and self._life.process.returncode is not None
        return "loading" if ended and self._state == "ready" else self._state

    @property
    def detail(self) -> str:
        return f"the model runs in a child process, started again {self.restarts_total} times"

    @property
    def return_s(self) -> float:
        """See `Keeper.return_s`."""
        return self._patience.return_s

    @property
    def process_id(self) -> int | None:
        """Of the child that runs now."""
        return None if self._life is None else self._life.process.pid

    async def start(self, check: Check, probe: Check) -> None:
        """See `Keeper.start`; a child that dies before its first answer is not tried again."""
        try:
            life = await self._launch()
            await self._until_ready(life, check)
            self._state = "ready"
        finally:
            if self._state != "ready":
                await self._stop()
        self._keeping = asyncio.create_task(self._keep(life, check, probe))

    async def close(self) -> None:
        """Stop it: SIGTERM, then SIGKILL, to its whole process group."""
        self._state = "dead"
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._stop()
        if self._command.socket is not None:
            shutil.rmtree(Path(self._command.socket).parent, ignore_errors=True)

    async def _keep(self, life: _Life, check: Check, probe: Check) -> None:
        """Start it again whenever it dies or answers no more."""
        pause_s = self._patience.pause_s
        while True:
            began_s = time.monotonic()
            fault = await self._until_it_fails(life, probe)
            if time.monotonic() - began_s >= self._patience.steady_s:
                pause_s = self._patience.pause_s
            log.error("%s %s; starting it again in %.1f s", self._command.name, fault, pause_s)
            await self._stop()
            self._state = "loading"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._patience.longest_pause_s)
            self.restarts_total += 1
            try:
                life = await self._launch()
                await self._until_ready(life, check)
            except StartError as error:
                log.error("%s", error)
                await self._stop()
                continue
            self._state = "ready"
            log.info("%s is ready again", self._command.name)

    async def _until_it_fails(self, life: _Life, probe: Check) -> str:
        """Return when it has ended or is stalled, with a word on that."""
        stall_s = self._patience.stall_s
        probe_s = min(self._patience.probe_s, stall_s / 2)
        answered_s = time.monotonic()
        while True:
            await _wait(life.process, probe_s)
            if life.process.returncode is not None:
                self._state = "loading"
                return f"ended with {life.process.returncode}"
            try:
                # It may be us who were held up since the last answer.
                async with asyncio.timeout(max(probe_s, answered_s + stall_s - time.monotonic())):
                    await probe()
                answered_s = time.monotonic()
            except (RequestError, StartError, TimeoutError) as error:
                if time.monotonic() - answered_s >= stall_s:
                    self._state = "stalled"
                    return f"has not answered for {stall_s:g} s ({error or 'no word'})"

    async def _launch(self) -> _Life:
        command = self._command
        if command.socket is not None:
            _remove(command.socket)
        try:
            process = await asyncio.create_subprocess_exec(
                *command.arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # A process group of its own: Ctrl-C in the terminal is for us, who let running answers finish, and what
                # the child starts is stopped with it.
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"{command.arguments[0]} cannot be run: {error.strerror}") from None
        words = _Words()
        life = self._life = _Life(process, asyncio.create_task(_pass_on(process, command.name, words)), words)
        if process.stdin is not None and command.first_line:
            process.stdin.write(command.first_line.encode() + b"\n")
        return life

    async def _until_ready(self, life: _Life, check: Check) -> None:
        """Ask until it answers. Raises StartError when it dies, or needs too long."""
        problem: Exception | None = None
        name, told_s = self._command.name, time.monotonic()
        while life.process.returncode is None and time.monotonic() - life.words.last_s < self._patience.start_s:
            try:
                await check()
                return
            except RequestError as error:
                problem = error
            if time.monotonic() - told_s >= self._patience.tell_s:
                told_s = time.monotonic()
                log.info("%s is not ready yet: %s", name, problem)
            await asyncio.sleep(self._patience.ask_s)
        if life.process.returncode is None:
            raise StartError(f"{name} gave no answer and said nothing for {self._patience.start_s:.0f} s: {problem}")
        await asyncio.wait({life.logging}, timeout=1)
        said = " / ".join(life.words.lines) or "it said nothing"
        raise StartError(f"{name} ended with {life.process.returncode} before it was ready; its last words: {said}")

    async def _stop(self) -> None:
        life = self._life
        if life is None:
            return
        _signal(life.process.pid, signal.SIGTERM)
        await _wait(life.process, self._patience.stop_s)
        if life.process.returncode is None:
            log.warning("%s did not stop on SIGTERM and is killed", self._command.name)
        # What it started may outlive it, whichever way it ended.
        _signal(life.process.pid, signal.SIGKILL)
        await _wait(life.process, self._patience.stop_s)
        await asyncio.wait({life.logging}, timeout=1)
        life.logging.cancel()
        # Last: a stop that is cancelled leaves it to the next one.
        if self._life is life:
            self._life = None


async def _wait(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Until it has ended, at most so long. Look at its `returncode` afterwards: asyncio's own waiting goes on for as
    long as what it started holds its output."""
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), seconds)


def _remove(socket: str) -> None:
    """Make room for a socket: a child that was killed could not remove its own."""
    Path(socket).unlink(missing_ok=True)


def _signal(group: int, number: signal.Signals) -> None:
    """Send a signal to the process group that the child leads, unless all of it is gone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


async def _pass_on(process: asyncio.subprocess.Process, name: str, words: _Words) -> None:
    """Log what it says, line by line; of one that is written over, as progress is, the last state."""
    if process.stdout is None:
        return
    child_log = logging.getLogger(f"onsight.{name}")
    pending, ended = b"", False
    while not ended:
        piece = await process.stdout.read(_LONGEST_LINE)
        words.last_s, ended = time.monotonic(), not piece
        *lines, pending = (pending + (piece or b"\n")).split(b"\n")
        pending = pending[-_LONGEST_LINE:]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
            if text:
                words.lines.append(text)
                child_log.info("%s", text)
