"""A Ray cluster that the launcher starts takes no stranger's job."""

from __future__ import annotations

from pathlib import Path

from tests.deploy.test_ray_files import SECRETS, start


def test_nodes_start_with_a_token_explicit_addresses_and_the_door(ray: Path) -> None:
    head = start(ray, "head", "10.0.0.1", **SECRETS).stdout
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=onsight.hosts.ray.door" in head
    assert "--node-ip-address 10.0.0.1" in head
    assert "--dashboard-host 127.0.0.1" in head
    worker = start(ray, "worker", "10.0.0.2", "10.0.0.1", **SECRETS).stdout
    assert "RAY_AUTH_MODE=token" in worker
    assert "ray start --block --node-ip-address 10.0.0.2 --address 10.0.0.1:6379" in worker
