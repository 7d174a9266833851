"""POST /infer, which two services had: a form is captioned, JSON is answered in the Llama service's envelope."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.compat import captioning, llama_vision
from onsight.api.multipart import MEDIA_TYPE, is_multipart
from onsight.api.services import Services
from onsight.core.errors import RequestError, Unavailable

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": captioning.Caption | llama_vision.InferAnswer},
    "default": {"model": captioning.Detail | llama_vision.InferError, "description": "An error"},
}
"""What it answers, for the description."""

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{llama_vision.InferRequest.__name__}"}},
            MEDIA_TYPE: {"schema": captioning.FORM},
        },
    }
}
"""What it reads, for the description."""


class InferRoute:
    """The route, bound to what it calls."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def answer(self, request: Request) -> Response:
        """Caption the picture in a form, or answer a prompt about the one in JSON."""
        # A full, stopping or loading server says so before it reads a body.
        with self._services.admission.place(caller=caller_name(request.scope)):
            pass
        loaded = self._services.roster.find(None)
        if loaded.engine.status().state in ("loading", "dead"):
            raise Unavailable("Model not loaded", retry_after_s=5)
        read = captioning.answer_form if is_multipart(request) else llama_vision.answer_json
        return await read(self._services, loaded, request)


def error_body(error: RequestError, request: Request) -> bytes:
    """`error` as the service that `request` was meant for put it."""
    return captioning.error_body(error) if is_multipart(request) else llama_vision.error_body(error)
