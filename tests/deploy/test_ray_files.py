"""What starts a Ray cluster: a token, keys and explicit hosts, or it does not start; and what is deployed there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy/ray"
SECRETS = {"RAY_AUTH_TOKEN": "token", "ONSIGHT_API_KEY": "k"}


@pytest.fixture
def ray(tmp_path: Path) -> Path:
    """A folder with a `ray` that shows what it was started with."""
    stand_in = tmp_path / "ray"
    stand_in.write_text('#!/bin/sh\nenv | grep -E "^(RAY|ONSIGHT)_" | sort\necho "ray $*"\n')
    stand_in.chmod(0o755)
    return tmp_path


def start(ray: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{ray}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(FOLDER / "start.sh"), *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "missing", "why"),
    [
        (("head", "10.0.0.1"), "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN"),
        (("head", "10.0.0.1"), "ONSIGHT_API_KEY", "ONSIGHT_API_KEY"),
        (("head",), "", "usage"),
        (("worker", "10.0.0.2"), "", "usage"),
        (("tail", "10.0.0.1"), "", "neither head nor worker"),
    ],
)
def test_a_node_without_its_secrets_or_its_address_does_not_start(
    ray: Path, arguments: tuple[str, ...], missing: str, why: str
) -> None:
    done = start(ray, *arguments, **{name: value for name, value in SECRETS.items() if name != missing})
    assert done.returncode != 0
    assert why in done.stderr
    assert "ray start" not in done.stdout


@pytest.mark.ray
def test_what_is_deployed_is_what_ray_reads_and_each_model_is_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    from onsight.hosts.ray import build

    monkeypatch.setenv("ONSIGHT_API_KEY", "k")
    read = ServeDeploySchema.model_validate(yaml.safe_load((FOLDER / "serve.yaml").read_text("utf-8")))
    assert read.http_options.host == "0.0.0.0"
    assert [one.route_prefix for one in read.applications] == ["/peek", "/holo"]
    for one in read.applications:
        assert one.import_path == "onsight.hosts.ray:build"
        assert isinstance(one.args, dict)
        assert build(one.args)
