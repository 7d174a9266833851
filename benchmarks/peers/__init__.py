"""The servers that Onsight is measured against, each started with `python -m benchmarks.peers.NAME FOLDER PORT`."""
