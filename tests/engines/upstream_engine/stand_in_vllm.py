"""Stands in for the program `vllm`: takes `serve MODEL --uds SOCKET ...` and speaks vLLM's API by a script."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from tests.engines.upstream_engine.scripted import GOOD, HEAD, Scripted, ending, piece, slowly

POISON = "poison"
"""A request with this word in it ends the program."""


async def serve(socket: str, scripted: Scripted, pause_s: float = 0.0) -> None:
    """Answer until killed."""
    usual = slowly(pause_s, HEAD + piece("Hello"), piece(" you"), ending()) if pause_s else GOOD

    async def play(writer: asyncio.StreamWriter) -> None:
        if POISON in str(scripted.bodies[-1]):
            os._exit(7)
        scripted.plays.append(play)
        await usual(writer)

    scripted.plays.append(play)
    server = await asyncio.start_unix_server(scripted.serve, socket)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--pause-s", type=float, default=0.0, help="after each piece of an answer")
    options, rest = parser.parse_known_args()
    print(f"this is no vLLM but a stand-in for tests; it was given {' '.join(rest)}", flush=True)
    if not Path(options.model).is_dir() and options.model.count("/") != 1:
        sys.exit(f"{options.model} is neither a folder nor a Hub id")
    server = Scripted(
        owner="vllm", model=options.served_model_name or options.model, key=os.environ.get("VLLM_API_KEY")
    )
    asyncio.run(serve(options.uds, server, options.pause_s))


if __name__ == "__main__":
    main()
