"""What RunPod starts: `python handler.py` answers test_input.json and ends, `--rp_serve_api` opens a local test API."""

import runpod

from onsight.hosts.runpod import serverless_worker

if __name__ == "__main__":
    with serverless_worker() as worker:
        runpod.serverless.start(worker)
