"""Onsight on two Ray nodes of this machine: streams, keys, affinity, scaling, lost replicas and a lost node."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import wait_until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ANSWERED_BY = "x-onsight-replica"
KEY = {"Authorization": "Bearer k"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Cluster:
    """Two nodes; `head` and `second`: addresses of their proxies."""

    ray: Any
    cluster: Any
    node: Any
    head: str
    second: str

    def deploy(self, **scaling: object) -> None:
        """Serve the fake engine anew, and wait until both proxies know of it."""
        from ray import serve

        from onsight.hosts.ray import build

        serve.run(build({"engine": "fake", "max_queue": 64, "scaling": {"cpus": 0.1, **scaling}}), name="one")
        for address in (self.head, self.second):
            wait_until(lambda address=address: self.is_ready(address), 60)

    def is_ready(self, address: str) -> bool:
        try:
            return httpx.get(f"{address}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def replicas(self) -> list[str]:
        """Names of the actors that answer."""
        from ray import serve

        deployments = serve.status().applications["one"].deployments
        return [
            name for one in deployments.values() for name, count in one.replica_states.items() for _ in range(count)
        ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head, second = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ONSIGHT_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path[1:]]))
        patch.setenv("ONSIGHT_API_KEY", "k")
        patch.setenv("ONSIGHT_UI", "off")
        patch.setenv("RAY_SERVE_WORKER_PROXY_HTTP_PORT", str(second))
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "onsight.hosts.ray.door")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster as Nodes

        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        node = nodes.add_node(num_cpus=2)
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": head})
        try:
            yield Cluster(ray, nodes, node, f"http://127.0.0.1:{head}", f"http://127.0.0.1:{second}")
        finally:
            serve.shutdown()
            ray.shutdown()
            nodes.shutdown()


def chat(text: str = "hello", picture: str | None = None, **options: object) -> dict[str, object]:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if picture is not None:
        parts.append({"type": "image_url", "image_url": {"url": picture}})
    return {"messages": [{"role": "user", "content": parts}], **options}


def ask(address: str, body: Mapping[str, object]) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=KEY, timeout=60)


def test_plain_answers_and_streams_come_through_either_nodes_proxy(cluster: Cluster) -> None:
    cluster.deploy(min_replicas=2, max_replicas=2, replicas_a_node=1)
    whole = ask(cluster.head, chat(temperature=0))
    assert whole.status_code == 200
    text = whole.json()["choices"][0]["message"]["content"]
    assert text.startswith("fake engine: hello")
    streamed = ask(cluster.second, chat(temperature=0, stream=True))
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events[:-1]) == text


def test_a_key_is_asked_for_and_refusals_are_the_servers_own(cluster: Cluster) -> None:
    cluster.deploy()
    assert httpx.post(f"{cluster.head}/v1/chat/completions", json=chat()).status_code == 401
    refused = ask(cluster.head, chat(colour="red"))
    assert refused.status_code == 400
    assert "colour" in refused.json()["error"]["message"]
    assert refused.headers.get_list("x-request-id") == [refused.headers["x-request-id"]]
    nowhere = httpx.get(f"{cluster.head}/nowhere", headers=KEY)
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
