"""Stands in for the program `vllm`: takes `serve MODEL --uds SOCKET ...` and speaks vLLM's API by a script."""

from __future__ import annotations

import argparse
import asyncio

from tests.engines.upstream_engine.scripted import GOOD, HEAD, Scripted, ending, piece, slowly


async def serve(socket: str, model: str, pause_s: float) -> None:
    """Answer until killed."""
    usual = slowly(pause_s, HEAD + piece("Hello"), piece(" you"), ending()) if pause_s else GOOD
    scripted = Scripted(owner="vllm", model=model, usual=usual)
    server = await asyncio.start_unix_server(scripted.serve, socket)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--pause-s", type=float, default=0.0, help="after each piece of an answer")
    options, rest = parser.parse_known_args()
    print(f"this is no vLLM but a stand-in for tests; it was given {' '.join(rest)}", flush=True)
    asyncio.run(serve(options.uds, options.model, options.pause_s))


if __name__ == "__main__":
    main()
