"""Which errors each route may answer with, each by its status, in the API's description."""

from __future__ import annotations

from typing import Any

_SAID = {
    400: "The request is wrong; the text names the field, its value and what to do",
    401: "The key is missing or wrong",
    403: "The key does not open this route, or the host or page that the request comes by is not one of ours",
    404: "No model of that name is loaded",
    408: "The body, or a picture that was to be fetched, came too slowly",
    413: "The body, or a picture or video in it, has too many bytes",
    415: "The body is of another content type, or compressed",
    422: "The model's answer cannot be read as what the task asks for",
    429: "The queue is full, or one caller asks too often; try again after `retry-after` seconds",
    500: "Something went wrong on our side; the log has it under the answer's `x-request-id`",
    503: "Loading, stopping or dead, or too many bodies at once; try again after `retry-after` seconds",
    504: "The answer was not whole in the time that a request may take; the same request would take as long again",
}
_WAITS = frozenset((429, 503))
_ALL = frozenset((401, 403, 429, 500))
_POST = frozenset((400, 404, 408, 413, 415, 503, 504))
_OF_ROUTE = {
    "/v1/locate": frozenset((422,)),
    "/v1/ocr": frozenset((422,)),
    "/v1/models/{model}": frozenset((404,)),
    "/ready": frozenset((503,)),
    "/info": frozenset((400, 503)),
}
_OPEN = frozenset(("/health", "/ready"))
"""Without a key."""


def describe_errors(described: dict[str, Any]) -> None:
    """In place of each route's "default" answer, which stands for every error, name those that it has.

    An answer that the route itself describes under a status stays.
    """
    for path, item in described["paths"].items():
        for method, operation in item.items():
            answers = operation["responses"]
            error = answers.pop("default")
            # FastAPI gives it the type of the route's good answers.
            (content,) = error["content"].values()
            error["content"] = {"application/json": content}
            statuses = _ALL | _OF_ROUTE.get(path, frozenset()) | (_POST if method == "post" else frozenset())
            for status in sorted(statuses - ({401} if path in _OPEN else set())):
                answers.setdefault(str(status), error | {"description": _SAID[status]} | _headers(status))


def _headers(status: int) -> dict[str, Any]:
    if status not in _WAITS:
        return {}
    wait = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 0}}
    return {"headers": {"retry-after": wait}}
