"""llama.cpp's own server, alone on a port, from the same library and with the same settings as Onsight starts it.

python -m benchmarks.peers.llama_server MODEL MMPROJ PORT --threads N --slots N --context N
"""

from __future__ import annotations

import argparse
import threading

import xllamacpp


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("mmproj")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of each slot")
    arguments = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.mmproj.path = arguments.model, arguments.mmproj
    parameters.hostnames, parameters.port = ["127.0.0.1"], arguments.port
    parameters.n_parallel, parameters.n_ctx = arguments.slots, arguments.slots * arguments.context
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.fit_params = False
    parameters.ui = False
    parameters.offline = True
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
