"""Stands in for the program `vllm`: takes `serve MODEL --uds SOCKET ...` and speaks vLLM's API by a script."""

from __future__ import annotations

import argparse
import asyncio

from tests.engines.upstream_engine.scripted import Scripted


async def serve(socket: str, model: str) -> None:
    """Answer until killed."""
    scripted = Scripted(owner="vllm", model=model)
    server = await asyncio.start_unix_server(scripted.serve, socket)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--uds", required=True)
    options, rest = parser.parse_known_args()
    print(f"this is no vLLM but a stand-in for tests; it was given {' '.join(rest)}", flush=True)
    asyncio.run(serve(options.uds, options.model))


if __name__ == "__main__":
    main()
