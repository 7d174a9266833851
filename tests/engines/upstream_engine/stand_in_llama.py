"""Stands in for a user's own `llama-server`: takes `--host SOCKET ...` and speaks its API by a script."""

from __future__ import annotations

import argparse
import asyncio

from tests.engines.upstream_engine.stand_in_vllm import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    options, rest = parser.parse_known_args()
    print(f"this is no llama-server but a stand-in for tests; it was given {' '.join(rest)}", flush=True)
    asyncio.run(serve(options.host, "own", "llamacpp"))


if __name__ == "__main__":
    main()
