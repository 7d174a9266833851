"""The API tests' bench, and the command line's."""

from tests.api.conftest import build
from tests.cli.conftest import run

__all__ = ["build", "run"]
