"""How llama.cpp is started: what fits, with how many threads, on which processors, by whose program."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from onsight.core.errors import StartError
from onsight.engines.upstream_engine.leash import leashed
from onsight.engines.upstream_engine.llama import LlamaOptions, own_server, pick_threads, plan_cache, require_library

FREE = psutil.virtual_memory().total


def test_a_slot_holds_what_the_model_was_made_for_up_to_the_usual() -> None:
    assert plan_cache(2048, 100, None, 4).context_tokens == 2048
    assert plan_cache(131_072, 100, None, 4).context_tokens == 8192
    assert plan_cache(131_072, 100, 60_000, 4).context_tokens == 60_000


def test_a_context_that_the_model_was_not_made_for_is_refused_with_both_numbers() -> None:
    with pytest.raises(StartError, match=r"4096.*2048"):
        plan_cache(2048, 100, 4096, 4)


def test_slots_give_way_before_the_context_does() -> None:
    eighth = FREE // 8 // 2048
    assert 1 <= plan_cache(2048, eighth, None, 64).slots < 5
    assert plan_cache(2048, 1, None, 64).slots == 64
    with pytest.raises(StartError, match="max-model-len"):
        plan_cache(2048, FREE // 1000, None, 1)


def test_a_containers_limits_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onsight.engines.machine._CONTAINER", tmp_path)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert plan_cache(2048, 1, None, 64).slots == 64
    assert pick_threads(None) == 15
    (tmp_path / "memory.max").write_text(f"{2048 * 64}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2048 * 32}\nfile 99\n")
    (tmp_path / "cpu.max").write_text("450000 100000\n")
    assert plan_cache(2048, 1, None, 64).slots == 16
    assert pick_threads(None) == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert pick_threads(None) == 1


def test_threads_are_as_asked_or_leave_a_core_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_threads(5) == 5
    for physical, allowed, expected in ((8, 16, 7), (8, 4, 3), (2, 2, 2), (1, 2, 1)):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical, cores=physical: cores)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=allowed: set(range(cores)))
        assert pick_threads(None) == expected


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the extra `llama` is not installed")
@pytest.mark.skipif("x86" not in __import__("platform").machine(), reason="flags are those of x86")
def test_a_processor_without_what_the_library_needs_is_told_what_it_lacks(tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("processor : 0\nflags : fpu avx2 fma f16c bmi2 sse\n")
    require_library(flags)
    flags.write_text("processor : 0\nflags : fpu avx2 fma sse\n")
    with pytest.raises(StartError, match="f16c, bmi2"):
        require_library(flags)


def test_a_library_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"onsight\[llama\]"):
        require_library()


def test_a_library_that_cannot_be_loaded_says_which_package_to_install(tmp_path: Path) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-m", "onsight.engines.llama_worker"],
        input="{}\n",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "libgomp.so.1" in done.stderr
    assert "libgomp1 of Debian" in done.stderr


def test_ones_own_llama_server_is_told_the_same() -> None:
    options = LlamaOptions("/m.gguf", "/p.gguf", 1000, 3, 2, (None, 256), 64)
    address, command = own_server(sys.executable, options)
    arguments = command.arguments[len(leashed([])) :]
    assert arguments[0] == sys.executable
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert given == {
        "--model": "/m.gguf", "--mmproj": "/p.gguf", "--host": address.socket, "--ctx-size": "3000",
        "--parallel": "3", "--threads": "2", "--cache-ram": "64", "--image-max-tokens": "256",
    }  # fmt: skip
    assert json.loads(command.first_line) == {"LLAMA_API_KEY": address.key}
    assert command.socket is not None
    assert Path(command.socket).parent.stat().st_mode & 0o077 == 0
    Path(command.socket).parent.rmdir()
    with pytest.raises(StartError, match="/nowhere"):
        own_server("/nowhere/llama-server", options)
