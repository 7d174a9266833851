"""Stands in for a user's own `llama-server`: takes `--host SOCKET ...` and speaks its API by a script."""

from __future__ import annotations

import argparse
import asyncio
import os

from tests.engines.upstream_engine.scripted import Scripted
from tests.engines.upstream_engine.stand_in_vllm import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    options, rest = parser.parse_known_args()
    print(f"this is no llama-server but a stand-in for tests; it was given {' '.join(rest)}", flush=True)
    key = os.environ.get("LLAMA_API_KEY")
    server = Scripted(owner="llamacpp", model="own", key=key, context_tokens=None)  # as builds before 2025
    asyncio.run(serve(options.host, server))


if __name__ == "__main__":
    main()
