"""A program on the leash: it ends with whoever started it, by whatever way that ended, and is stopped as without."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from onsight.engines.upstream_engine.leash import leashed
from tests.servers import served, wait_until

ROOT = Path(__file__).parents[3]


def run(script: str, first_line: str = "{}") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        leashed([sys.executable, "-c", script]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(first_line + "\n")
    process.stdin.flush()
    return process


def test_what_its_first_line_names_is_in_the_programs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "inherited")
    script = "import os; print(os.environ['SOME_KEY'], len(os.environ) > 1)"
    with run(script, '{"SOME_KEY": "a secret"}') as process:
        assert process.stdout is not None
        assert process.stdout.read() == "a secret True\n"


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_server_leaves_no_program_behind(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    stand_in = "tests.engines.upstream_engine.stand_in_vllm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} {sys.executable} -m {stand_in} "$@"\n')
    program.chmod(0o755)
    with served("org/model", "--engine", "vllm", "--vllm", str(program)) as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        started = [one for one in family if str(program) in " ".join(one.cmdline()) or stand_in in one.cmdline()]
        assert len(started) == 3, family  # the leash, the program's shell, and what that started
        server.process.send_signal(signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, started)))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent is gone")
def test_a_killed_leash_takes_its_program_along() -> None:
    with run("print('runs', flush=True); import time; time.sleep(60)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.kill()
        assert process.stdout.read() == ""  # the program held it open


@pytest.mark.parametrize(
    ("script", "code"), [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_it_ends_as_its_program_ends(script: str, code: int) -> None:
    with run(script) as process:
        assert process.wait(30) == code


def test_its_program_has_the_time_that_it_takes_to_stop() -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("stopped well", flush=True), sys.exit(7)))
print("runs", flush=True)
time.sleep(60)
"""
    with run(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)
        assert process.wait(30) == 7
        assert process.stdout.read() == "stopped well\n"


def test_a_program_that_cannot_be_run_is_named() -> None:
    done = subprocess.run(leashed(["/nowhere/program"]), input="{}\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "/nowhere/program cannot be run: No such file or directory")
