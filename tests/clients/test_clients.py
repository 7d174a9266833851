"""Clients as people install them, against running servers; `make test-clients`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients import runs

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with runs.servers() as servers:
        yield servers


@pytest.mark.parametrize("client", runs.CLIENTS)
def test_a_client_passes_its_suite(environment: dict[str, str], client: str) -> None:
    outcomes = runs.CLIENTS[client](environment)
    if outcomes is None:
        pytest.skip("node and npm are not installed")
    assert [outcome for outcome in outcomes if outcome.state == "failed"] == []
    assert any(outcome.state == "passed" for outcome in outcomes)
