"""Asks one URL again and again and prints how long each answer took; a process of its own, so that no load delays it.

python -m benchmarks.probe URL SECONDS
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from urllib.parse import urlsplit

PAUSE_S = 0.01
TIMEOUT_S = 10.0


def probe(url: str, seconds: float) -> list[float]:
    """Milliseconds of each request, connecting included, one after the other with a short pause between.

    A request that fails or is not answered 200 counts as `TIMEOUT_S`.
    """
    parts = urlsplit(url)
    took_ms = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", parts.path)
            answered = connection.getresponse()
            answered.read()
            good = answered.status == 200
        except OSError:
            good = False
        finally:
            connection.close()
        took_ms.append(((time.perf_counter() - began_s) if good else TIMEOUT_S) * 1000)
        time.sleep(PAUSE_S)
    return took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    print(json.dumps(probe(arguments.url, arguments.seconds)))


if __name__ == "__main__":
    main()
