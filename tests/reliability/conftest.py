"""The API tests' bench."""

from tests.api.conftest import build

__all__ = ["build"]
