"""The API tests' bench, the command line's, and the stand-in for Ray's program."""

from tests.api.conftest import bench, build
from tests.cli.conftest import run
from tests.deploy.test_ray_files import ray

__all__ = ["bench", "build", "ray", "run"]
