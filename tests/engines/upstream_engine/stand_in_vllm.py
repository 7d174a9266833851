"""Stands in for the program `vllm`: takes `serve MODEL --uds SOCKET ...` and speaks vLLM's API by a script."""

from __future__ import annotations

import argparse
import asyncio
import os

from tests.engines.upstream_engine.scripted import GOOD, Scripted

POISON = "poison"
"""A request with this word in it ends the program."""


async def serve(socket: str, model: str, owner: str = "vllm") -> None:
    """Answer until killed."""
    scripted = Scripted(owner=owner, model=model)

    async def play(writer: asyncio.StreamWriter) -> None:
        if POISON in str(scripted.bodies[-1]):
            os._exit(7)
        scripted.plays.append(play)
        await GOOD(writer)

    scripted.plays.append(play)
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
