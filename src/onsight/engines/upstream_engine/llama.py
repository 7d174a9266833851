"""llama.cpp as a child process: what it needs of this machine, and how it is started."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import secrets
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from onsight.core.errors import StartError
from onsight.engines.machine import free_memory, usable_cores
from onsight.engines.upstream_engine.child import ChildCommand
from onsight.engines.upstream_engine.connection import Address
from onsight.engines.upstream_engine.leash import leashed

_NEEDED = ("avx2", "fma", "f16c", "bmi2")
"""What the prebuilt library was compiled for; without one of them it ends with an illegal instruction."""
_KEY_VALUE_SHARE = 0.5
"""Of the memory that is free before the weights are mapped; these and the pictures need the other half."""
_COMMON_CONTEXT = 8192
_WORKER = "onsight.engines.llama_worker"


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """What llama.cpp is told. `context_tokens`: of each of the `slots`. `image_tokens`: least and most for a picture.

    `prompt_cache_mb`: megabytes of prompts' states that it keeps beside those of its slots.
    """

    model: str
    mmproj: str | None
    context_tokens: int
    slots: int
    threads: int
    image_tokens: tuple[int | None, int | None] = (None, None)
    prompt_cache_mb: int = 0


@dataclass(frozen=True, slots=True)
class LlamaPlan:
    """What fits: tokens of each slot, and slots."""

    context_tokens: int
    slots: int


def plan_cache(trained: int, token_bytes: int, asked: int | None, slots: int) -> LlamaPlan:
    """How many tokens each slot holds, and how many slots there are: fewer than asked for where memory is short.

    `trained`: the model's own context. `asked`: by the operator; else up to `_COMMON_CONTEXT`. Raises StartError.
    """
    if asked is not None and asked > trained:
        raise StartError(f"max_model_len is {asked}, but the model was made for {trained} tokens: set it lower")
    context = asked or min(trained, _COMMON_CONTEXT)
    free = free_memory()
    fitting = int(free * _KEY_VALUE_SHARE) // max(1, context * token_bytes)
    if not fitting:
        raise StartError(
            f"the keys and values of {context} tokens take {context * token_bytes >> 20} MB, and {free >> 20} MB are"
            " free: set --max-model-len lower"
        )
    return LlamaPlan(context, min(slots, fitting))


def pick_threads(asked: int | None) -> int:
    """The physical cores that we may use, less one for the server itself where there are more than two: llama.cpp's
    threads wait for each other in a loop, and one that is not running stops all."""
    if asked is not None:
        return asked
    cores = usable_cores()
    return cores - 1 if cores > 2 else cores


def require_library(cpu_information: Path = Path("/proc/cpuinfo")) -> None:
    """Raises StartError where xllamacpp is not installed, or the processor lacks what it was compiled for."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise StartError("GGUF models need xllamacpp, which is not installed: pip install 'onsight[llama]'")
    if platform.machine() not in ("x86_64", "AMD64") or not cpu_information.exists():
        return
    lines = cpu_information.read_text("utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    missing = [flag for flag in _NEEDED if flag not in flags]
    if missing:
        raise StartError(
            f"this processor lacks {', '.join(missing)}, which xllamacpp needs: build llama.cpp for it and pass"
            " --llama-server PATH, or serve safetensors files on the torch engine"
        )


def worker(options: LlamaOptions) -> tuple[Address, ChildCommand]:
    """Our own worker around xllamacpp; its options come by standard input, where no other user can read the key."""
    address = _private_address(secrets.token_urlsafe(24))
    line = json.dumps({**asdict(options), "socket": address.socket, "key": address.key})
    return address, ChildCommand("llama", [sys.executable, "-m", _WORKER], first_line=line, socket=address.socket)


def own_server(executable: str, options: LlamaOptions) -> tuple[Address, ChildCommand]:
    """The user's own build of llama-server. Raises StartError when it is no program."""
    if not os.access(executable, os.X_OK) or not Path(executable).is_file():
        raise StartError(f"llama_server {executable!r} is neither a URL nor a program that can be run")
    address = _private_address(secrets.token_urlsafe(24))
    least, most = options.image_tokens
    given = {
        "--model": options.model,
        "--mmproj": options.mmproj,
        "--host": address.socket,
        "--ctx-size": options.context_tokens * options.slots,
        "--parallel": options.slots,
        "--threads": options.threads,
        "--cache-ram": options.prompt_cache_mb,
        "--image-min-tokens": least,
        "--image-max-tokens": most,
    }
    flags = [text for flag, value in given.items() if value is not None for text in (flag, str(value))]
    line = json.dumps({"LLAMA_API_KEY": address.key})
    return address, ChildCommand("llama", leashed([executable, *flags]), first_line=line, socket=address.socket)


def _private_address(key: str) -> Address:
    """A unix socket in a folder that only this user may enter."""
    return Address("http://llama", str(Path(tempfile.mkdtemp(prefix="onsight-")) / "llama.sock"), key)
