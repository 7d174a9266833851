"""/, /health, /ready and /v1/models: what they say in each state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest

from onsight.core.engine import EngineState, EngineStatus, MemoryUse
from onsight.engines.fake_engine import FakeEngine
from tests.api.conftest import Bench


class Stated(FakeEngine):
    """An engine in a given state."""

    def __init__(self, state: EngineState, memory: MemoryUse | None = None) -> None:
        super().__init__()
        self._stated = state
        self._memory = memory

    def status(self) -> EngineStatus:
        return EngineStatus(state=self._stated, device="cuda:0", memory=self._memory)


async def test_the_root_has_every_key_that_any_of_the_five_services_had(bench: Bench) -> None:
    about = (await bench.get("/")).json()
    assert about["status"] == "running"
    assert about["api_version"] == "OpenAI Compatible"
    assert (about["model"], about["device"], about["service"]) == ("fake", "none", "onsight")
    assert about["version"]
    assert about["message"]
    assert about["endpoints"]["/v1/chat/completions"] == "POST - Chat about pictures and text"


async def test_a_browser_is_led_from_the_root_to_the_docs(bench: Bench) -> None:
    response = await bench.get("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert response.status_code == 307
    assert response.headers["location"] == "docs"


async def test_health_has_every_key_that_any_of_the_five_services_had(bench: Bench) -> None:
    response = await bench.get("/health")
    health = response.json()
    assert response.status_code == 200
    assert datetime.fromisoformat(health.pop("timestamp")).tzinfo is not None
    assert health == {
        "status": "healthy",
        "model_loaded": True,
        "processor_loaded": True,
        "device": "none",
        "model_name": "fake",
    }


@pytest.mark.parametrize(
    ("state", "healthy", "ready"),
    [("loading", 503, 503), ("ready", 200, 200), ("draining", 200, 503), ("dead", 503, 503)],
)
async def test_each_state_of_an_engine_shows(
    build: Callable[..., Bench], state: EngineState, healthy: int, ready: int
) -> None:
    bench = build(engine=Stated(state))
    health, readiness = await bench.get("/health"), await bench.get("/ready")
    assert health.status_code == healthy
    assert health.json()["model_loaded"] is (healthy == 200)
    assert readiness.status_code == ready
    assert readiness.json()["models"] == {"fake": state}
    if ready == 503:
        assert readiness.json()["status"] == state
        assert readiness.json()["error"]["message"] == f"fake is {state}"
        assert int(readiness.headers["retry-after"]) > 0


async def test_a_server_that_is_stopping_is_healthy_but_not_ready(bench: Bench) -> None:
    bench.admission.close()
    assert (await bench.get("/health")).status_code == 200
    readiness = await bench.get("/ready")
    assert (readiness.status_code, readiness.json()["status"]) == (503, "draining")


async def test_probes_may_ask_by_head(bench: Bench) -> None:
    async with bench.client() as client:
        assert (await client.head("/health")).status_code == 200
        assert (await client.head("/ready")).status_code == 200


async def test_a_model_is_shown_with_its_cards_facts(bench: Bench) -> None:
    shown = (await bench.get("/v1/models")).json()
    assert shown["object"] == "list"
    assert shown["data"][1] == {
        "id": "org/fake-2B",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "onsight",
        "root": "fake",
        "title": "The fake engine",
        "description": "No model at all.",
        "family": "fake",
        "licence": "Apache-2.0",
        "capabilities": ["chat", "tools"],
        "convention": "0..1000",
        "pixels": {"chat": {"min_pixels": None, "max_pixels": 500_000}},
        "defaults": {"temperature": 0.25, "top_p": None},
        "context_tokens": 4096,
        "memory": None,
    }


async def test_a_model_says_what_it_takes_in_memory_once_it_is_loaded(build: Callable[..., Bench]) -> None:
    memory = MemoryUse(weights_bytes=1000, token_bytes=20, picture_tokens=30, picture_bytes=600)
    shown = (await build(engine=Stated("ready", memory)).get("/v1/models/fake")).json()
    assert shown["memory"] == {
        "weights_bytes": 1000,
        "token_bytes": 20,
        "picture_tokens": 30,
        "picture_bytes": 600,
    }
    assert (await build(engine=Stated("loading", memory)).get("/v1/models/fake")).json()["memory"] is None


async def test_a_model_that_is_loading_has_no_context_yet(build: Callable[..., Bench]) -> None:
    assert (await build(engine=Stated("loading")).get("/v1/models/fake")).json()["context_tokens"] is None


async def test_a_model_that_is_not_there_is_404(bench: Bench) -> None:
    for path in ("/v1/models/none", "/v1/models/org/none", "/v1/models/"):
        assert (await bench.get(path)).status_code == 404
