"""vLLM as a child process, from an environment of its own."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onsight.core.errors import StartError
from onsight.engines.upstream_engine.child import ChildCommand
from onsight.engines.upstream_engine.connection import Address
from onsight.engines.upstream_engine.leash import leashed

FAMILIES = frozenset({"qwen_vl", "smolvlm", "phi3_vision"})
"""Those of ours whose checkpoints vLLM 0.32 runs too; it has neither Llama 3.2 Vision nor ColQwen2.5."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What vLLM is told; `arguments` as on its own command line. None leaves it to vLLM.

    `model`: a folder or a Hub id. `name`: what it calls the model.
    """

    model: str
    name: str
    revision: str | None
    context_tokens: int | None
    slots: int | None
    arguments: str = ""


def find_program(executable: str | None) -> str:
    """The path of vLLM's program. Raises StartError when there is no such program."""
    program = shutil.which(executable) if executable else None
    if program is None:
        raise StartError(
            f"the engine vllm needs vLLM's own program, and {executable!r} is none: set ONSIGHT_VLLM to the path of"
            " `vllm` in the environment where it is installed, or pass --upstream URL"
        )
    return program


def vllm_server(executable: str | None, options: VllmOptions) -> tuple[Address, ChildCommand]:
    """`vllm serve` on a unix socket. Raises StartError when there is no such program."""
    program = find_program(executable)
    try:
        extra = shlex.split(options.arguments)
    except ValueError as error:
        raise StartError(f"vllm_args {options.arguments!r} cannot be split into words: {error}") from None
    if any(word.partition("=")[0].replace("_", "-") == "--api-key" for word in extra):
        raise StartError(
            "vllm_args hold --api-key, but vLLM gets a key that Onsight makes up, and clients send Onsight's own"
            " (ONSIGHT_API_KEY): leave it out"
        )
    socket = str(Path(tempfile.mkdtemp(prefix="onsight-")) / "vllm.sock")
    given = {
        "--uds": socket,
        "--served-model-name": options.name,
        # Sampling defaults are ours; a checkpoint's own must not leak in.
        "--generation-config": "vllm",
        "--max-num-seqs": options.slots,
        "--max-model-len": options.context_tokens,
        "--revision": options.revision,
    }
    flags = [text for flag, value in given.items() if value is not None for text in (flag, str(value))]
    # A key of ours in any case: one in our environment would else become vLLM's own, and we would not be let in.
    key = secrets.token_urlsafe(24)
    arguments = leashed([program, "serve", options.model, *flags, *extra])
    command = ChildCommand("vllm", arguments, first_line=json.dumps({"VLLM_API_KEY": key}), socket=socket)
    return Address("http://vllm", socket, key), command
