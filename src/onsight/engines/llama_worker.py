"""The llama.cpp child process: xllamacpp's server on a unix socket, until standard input is closed.

Run as `python -m onsight.engines.llama_worker` with one line of JSON on standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve until whoever started us is gone."""
    options = json.loads(sys.stdin.readline())
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"xllamacpp cannot be loaded ({error}): install libgomp, the package libgomp1 of Debian and Ubuntu")
    server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), options))
    print(f"llama.cpp listens on {server.listening_address}", flush=True)
    sys.stdin.read()
    # Without the destructors: llama.cpp's wait for requests that nobody reads any more.
    os._exit(0)


def _parameters(parameters: Any, options: dict[str, Any]) -> Any:
    """llama.cpp's own parameters, for one model and nothing else: no page, no other routes than those we need."""
    parameters.model.path = options["model"]
    if options["mmproj"] is not None:
        parameters.mmproj.path = options["mmproj"]
    parameters.hostnames = [options["socket"]]
    parameters.api_keys = [options["key"]]
    parameters.n_ctx = options["context_tokens"] * options["slots"]
    parameters.n_parallel = options["slots"]
    parameters.cpuparams.n_threads = options["threads"]
    parameters.cpuparams_batch.n_threads = options["threads"]
    least, most = options["image_tokens"]
    if least is not None:
        parameters.image_min_tokens = least
    if most is not None:
        parameters.image_max_tokens = most
    parameters.cache_ram_mib = options["prompt_cache_mb"]
    parameters.fit_params = False  # what fits was planned before
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.offline = True
    return parameters


if __name__ == "__main__":
    main()
