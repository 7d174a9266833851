"""The child process: what is said when it cannot start, that it is started again, and that it always ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from onsight.core.errors import StartError, Unavailable
from onsight.engines.upstream_engine.child import Child, ChildCommand, Patience

QUICK = Patience(start_s=10.0, stop_s=0.5, pause_s=0.01, longest_pause_s=0.05, ask_s=0.01)
Check = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """A check that is always content."""


def running(script: str, patience: Patience = QUICK, first_line: str = "") -> Child:
    return Child(ChildCommand("test", [sys.executable, "-c", script], first_line=first_line), patience)


def when_there(path: Path) -> Check:
    """A check that is content once the child wrote that file."""

    async def check() -> None:
        if not await asyncio.to_thread(path.exists):
            raise Unavailable("not yet")

    return check


async def test_a_program_that_is_none_is_named() -> None:
    child = Child(ChildCommand("test", ["/nowhere/program"]), QUICK)
    with pytest.raises(StartError, match="/nowhere/program cannot be run"):
        await child.start(nothing, nothing)
    await child.close()


async def test_a_child_that_dies_at_once_is_quoted() -> None:
    async def never() -> None:
        raise Unavailable("not yet")

    child = running("import sys; print('no such model'); sys.exit(3)")
    with pytest.raises(StartError, match=r"ended with 3 .* no such model"):
        await child.start(never, never)
    await child.close()


async def test_a_child_that_never_answers_is_given_up() -> None:
    async def never() -> None:
        raise Unavailable("still loading")

    child = running("import time; time.sleep(60)", Patience(start_s=0.1, stop_s=0.5, ask_s=0.01))
    with pytest.raises(StartError, match="still loading"):
        await child.start(never, never)
    assert child.process_id is None
    await child.close()


async def test_a_child_that_still_says_something_is_not_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """As one does that downloads a model, in a line that is written over again and again."""
    caplog.set_level(logging.INFO)
    script = (
        "import sys, time\n"
        "for n in range(20):\n"
        "    sys.stderr.write(f'\\rdownloaded {n * 5} %'); sys.stderr.flush(); time.sleep(0.1)\n"
        "print(flush=True); time.sleep(60)\n"
    )

    async def when_loaded() -> None:
        if "downloaded 95" not in caplog.text:
            raise Unavailable("loading")

    child = running(script, Patience(start_s=1.0, stop_s=0.5, ask_s=0.01))
    await child.start(when_loaded, nothing)
    assert "downloaded 90" not in caplog.text
    await child.close()


async def test_why_it_is_not_ready_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked = 0

    async def at_last() -> None:
        nonlocal asked
        asked += 1
        if asked < 100:
            raise Unavailable("the server answers 503")

    child = running("import time; time.sleep(60)", Patience(tell_s=0.3, stop_s=0.5, ask_s=0.01))
    await child.start(at_last, nothing)
    assert 1 <= caplog.text.count("not ready yet: the server answers 503") < 20
    await child.close()


async def test_its_last_words_need_no_end_of_line() -> None:
    async def never() -> None:
        raise Unavailable("not yet")

    child = running("import sys; sys.stdout.write('cut o'); sys.stdout.flush(); sys.exit(3)")
    with pytest.raises(StartError, match="cut o"):
        await child.start(never, never)
    await child.close()


async def test_pauses_grow_with_each_death_in_a_row_up_to_the_longest(caplog: pytest.LogCaptureFixture) -> None:
    child = running("import time; time.sleep(0.05)", Patience(stop_s=0.5, pause_s=0.1, longest_pause_s=0.4, probe_s=60))
    await child.start(nothing, nothing)
    async with asyncio.timeout(20):
        while child.restarts_total < 4:
            await asyncio.sleep(0.01)
    await child.close()
    pauses = [
        str(record.args[2]) for record in caplog.records if isinstance(record.args, tuple) and "again in" in record.msg
    ]
    assert pauses[:4] == ["0.1", "0.2", "0.4", "0.4"]


async def test_a_steady_life_ends_the_row(caplog: pytest.LogCaptureFixture) -> None:
    child = running("import time; time.sleep(0.3)", Patience(stop_s=0.5, pause_s=0.05, steady_s=0.1))
    await child.start(nothing, nothing)
    async with asyncio.timeout(20):
        while child.restarts_total < 3:
            await asyncio.sleep(0.01)
    await child.close()
    pauses = {
        record.args[2] for record in caplog.records if isinstance(record.args, tuple) and "again in" in record.msg
    }
    assert pauses == {0.05}


async def test_a_steady_life_ends_a_row_at_once(caplog: pytest.LogCaptureFixture) -> None:
    child = running("import time; time.sleep(60)", Patience(stop_s=0.5, pause_s=0.05, steady_s=1.0))
    await child.start(nothing, nothing)
    async with asyncio.timeout(30):
        for lived_s in (0, 0, 0, 1.2):
            await asyncio.sleep(lived_s)
            restarts, process = child.restarts_total, child.process_id
            assert process is not None
            os.kill(process, signal.SIGKILL)
            while child.restarts_total == restarts or child.state != "ready":
                await asyncio.sleep(0.005)
    await child.close()
    pauses = [
        record.args[2] for record in caplog.records if isinstance(record.args, tuple) and "again in" in record.msg
    ]
    assert pauses == [0.05, 0.1, 0.2, 0.05]


async def test_a_frozen_child_ends_though_closing_comes_while_it_is_being_stopped() -> None:
    async def silent() -> None:
        raise Unavailable("no word")

    child = running("import time; time.sleep(60)", Patience(stop_s=1.0, probe_s=0.01, stall_s=0.05))
    await child.start(nothing, silent)
    process = psutil.Process(child.process_id)
    os.kill(process.pid, signal.SIGSTOP)  # SIGTERM alone does not end it
    try:
        async with asyncio.timeout(20):
            while child.state != "stalled":
                await asyncio.sleep(0.005)
            await child.close()
        assert not process.is_running()
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("held_up_s", [0.0, 0.6])
async def test_a_child_that_answers_is_left_alone_however_short_the_patience(held_up_s: float) -> None:
    """Also where it was the event loop that stood still for longer than that."""
    answered = 0

    async def well() -> None:
        nonlocal answered
        await asyncio.sleep(0.02)
        answered += 1

    child = running("import time; time.sleep(60)", Patience(stop_s=0.5, pause_s=0.01, probe_s=0.8, stall_s=0.4))
    await child.start(well, well)
    await asyncio.sleep(0.1)
    asyncio.get_running_loop().call_soon(time.sleep, held_up_s)
    await asyncio.sleep(2.0)
    assert answered >= 4
    assert child.restarts_total == 0
    await child.close()


async def test_its_lines_are_logged_and_the_first_line_reaches_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    child = running("print('heard', input(), flush=True); input()", first_line="a secret")
    await child.start(nothing, nothing)
    async with asyncio.timeout(10):
        while "heard a secret" not in caplog.text:
            await asyncio.sleep(0.01)
    await child.close()


async def test_a_child_that_was_killed_is_started_again(tmp_path: Path) -> None:
    child = running("import time; time.sleep(60)")
    await child.start(nothing, nothing)
    seen = set()
    for _ in range(3):
        first = child.process_id
        assert first is not None
        seen.add(first)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(10):
            while child.process_id in (None, first) or child.state != "ready":
                await asyncio.sleep(0.005)
    assert len(seen) == 3
    assert child.restarts_total == 3
    await child.close()


async def test_a_child_that_dies_is_missed_though_what_it_started_holds_its_output() -> None:
    script = "import subprocess, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"
    child = running(script, Patience(stop_s=0.5, pause_s=0.01, probe_s=0.05))
    await child.start(nothing, nothing)
    first = child.process_id
    assert first is not None
    async with asyncio.timeout(20):
        while not (started := psutil.Process(first).children()):
            await asyncio.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        while child.process_id in (None, first) or child.state != "ready":
            await asyncio.sleep(0.005)
        started += psutil.Process(child.process_id).children()
        await child.close()
    for process in started:  # in sessions of their own, they are beyond the reach of a process group
        process.kill()
    await asyncio.sleep(0.1)  # until their ends of the pipes are seen to be closed


async def test_a_child_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN);"
        " time.sleep(600)'])\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(600)\n"
    )
    child = running(script)
    await child.start(when_there(ready), nothing)
    own = psutil.Process(child.process_id)
    family = [own, *own.children(recursive=True)]
    assert len(family) == 2
    async with asyncio.timeout(20):
        await child.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert child.state == "dead"


async def test_it_leads_a_process_group_of_its_own() -> None:
    child = running("import time; time.sleep(60)")
    await child.start(nothing, nothing)
    assert child.process_id is not None
    assert os.getpgid(child.process_id) == child.process_id != os.getpgrp()
    await child.close()


async def test_the_socket_and_its_folder_are_removed(tmp_path: Path) -> None:
    socket = tmp_path / "own" / "x.sock"
    socket.parent.mkdir()
    socket.write_text("left behind by one that was killed")
    command = ChildCommand("test", [sys.executable, "-c", "import time; time.sleep(60)"], socket=str(socket))
    child = Child(command, QUICK)
    await child.start(nothing, nothing)
    assert not socket.exists()
    await child.close()
    assert not socket.parent.exists()
