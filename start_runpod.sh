#!/bin/sh
# What a RunPod worker runs: the handler, in the place of this shell, so that it gets RunPod's signals.
set -eu
cd "$(dirname "$0")"
exec python -u handler.py "$@"
