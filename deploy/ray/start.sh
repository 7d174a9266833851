#!/usr/bin/env bash
# Start a node of a Ray cluster for Onsight: `start.sh head ADDRESS` on one machine, `start.sh worker ADDRESS HEAD` on others.
# ADDRESS is this machine's own within the cluster; HEAD is the head's. Every node wants the same two secrets.
set -euo pipefail

usage="usage: start.sh head ADDRESS | start.sh worker ADDRESS HEAD"
role=${1:?$usage} address=${2:?$usage}
: "${RAY_AUTH_TOKEN:?set it to the secret of this cluster, the same on every node (openssl rand -hex 32)}"
if [ -z "${ONSIGHT_API_KEY:-}${ONSIGHT_KEYS_FILE:-}" ]; then
    echo "start.sh: set ONSIGHT_API_KEY, or ONSIGHT_KEYS_FILE to a file that is on every node" >&2
    exit 2
fi

# Without a token whoever reaches a port of Ray runs code on the cluster.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0
# What the HTTP proxies stand behind: it asks again where a replica is lost, and keeps a picture's requests together.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=onsight.hosts.ray.door

case $role in
head) exec ray start --head --block --node-ip-address "$address" --port 6379 --dashboard-host 127.0.0.1 ;;
worker) exec ray start --block --node-ip-address "$address" --address "${3:?$usage}:6379" ;;
*)
    echo "start.sh: '$role' is neither head nor worker; $usage" >&2
    exit 2
    ;;
esac
