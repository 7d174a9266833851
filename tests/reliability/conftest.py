"""The API tests' bench."""

from tests.api.conftest import bench, build

__all__ = ["bench", "build"]
