"""GET /, /health and /ready: what this server is, whether it works, whether it takes requests; none waits for an
engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from onsight import __version__
from onsight.api.auth import wants_html
from onsight.api.errors import error_answer
from onsight.api.services import Services
from onsight.core.engine import EngineState
from onsight.core.errors import Unavailable


class Health(BaseModel):
    """503 and `unhealthy` while a model is loading or after its engine died."""

    status: Literal["healthy", "unhealthy"]
    model_loaded: bool
    processor_loaded: bool
    device: str
    model_name: str
    timestamp: str


class Ready(BaseModel):
    """Each model's state."""

    status: Literal["ready"] = "ready"
    models: dict[str, EngineState]


class About(BaseModel):
    """What this server is."""

    status: Literal["running"] = "running"
    service: Literal["onsight"] = "onsight"
    version: str = __version__
    message: str = "Onsight is running; /docs lists its routes"
    api_version: Literal["OpenAI Compatible"] = "OpenAI Compatible"
    model: str
    device: str
    endpoints: dict[str, str]


def timestamp() -> str:
    """The time now, in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()


class HealthRoutes:
    """The routes, bound to the roster and the queue. `endpoints`: path -> method and what it does.

    `front`: where a browser that asks for / is led.
    """

    def __init__(self, services: Services, front: str) -> None:
        self._front = front
        self._roster = services.roster
        self._admission = services.admission
        self.endpoints: dict[str, str] = {}

    async def about(self, request: Request) -> Response:
        """What this server is; a browser is led to the page, or to /docs."""
        if wants_html(request.headers):
            return RedirectResponse(self._front, headers={"vary": "accept"})
        loaded = self._roster.models[0]
        about = About(model=loaded.name, device=loaded.engine.status().device, endpoints=self.endpoints)
        return JSONResponse(about.model_dump(), headers={"vary": "accept"})

    async def health(self) -> Response:
        """Whether every model is loaded and its engine works."""
        states = self._states()
        works = all(state in ("ready", "draining") for state in states.values())
        loaded = self._roster.models[0]
        health = Health(
            status="healthy" if works else "unhealthy",
            model_loaded=works,
            processor_loaded=works,
            device=loaded.engine.status().device,
            model_name=loaded.name,
            timestamp=timestamp(),
        )
        return JSONResponse(health.model_dump(), 200 if works else 503)

    async def ready(self) -> Response:
        """Whether new requests are taken at this moment; a full queue is still ready."""
        states = self._states()
        waiting = [(name, state) for name, state in states.items() if state != "ready"]
        if self._admission.draining:
            waiting.insert(0, ("the server", "draining"))
        if not waiting:
            return JSONResponse(Ready(models=states).model_dump())
        name, state = waiting[0]
        error = Unavailable(f"{name} is {state}", retry_after_s=5)
        body = {"status": state, "models": states, **error_answer(error).model_dump()}
        return JSONResponse(body, 503, {"retry-after": str(error.retry_after_s)})

    def _states(self) -> dict[str, EngineState]:
        return {loaded.name: loaded.engine.status().state for loaded in self._roster.models}
