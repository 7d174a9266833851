"""Which HTTP status each error has, in one table, and the error body that routes answer with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from onsight.core import errors


class ErrorObject(BaseModel):
    """What went wrong, which field is at fault, and a short word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class UnreadableObject(ErrorObject):
    """What went wrong, and what the model said, word for word."""

    answer: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error, in OpenAI's form."""

    error: UnreadableObject | ErrorObject


class Unauthorized(errors.RequestError):
    """The request carries no key, or a wrong one."""

    code = "invalid_api_key"


class Forbidden(errors.RequestError):
    """The key does not open this path, or the page or name that the request comes by is not one of ours."""

    code = "permission_denied"


class RateLimited(errors.Overloaded):
    """One caller calls too often; others may go on."""

    code = "rate_limit_exceeded"


class WrongContentType(errors.InvalidRequest):
    """The body is not in a form that the route reads."""

    code = "unsupported_media_type"


class NoSuchRoute(errors.RequestError):
    """Nothing answers at this path."""

    code = "not_found"


class WrongMethod(errors.RequestError):
    """The path answers to other methods; `allow` lists them."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class Unprocessable(errors.RequestError):
    """A body in a form that its route does not read, for services whose clients expect FastAPI's answer to that.

    `place`: where the fault is, from the body on.
    """

    code = "value_error"

    def __init__(self, message: str, *, place: tuple[str, ...], code: str) -> None:
        super().__init__(message, code=code)
        self.place = place


class InternalError(errors.RequestError):
    """Something that nobody foresaw; the log has it, the client gets the request's id."""

    code = "internal_error"


_INVALID = "invalid_request_error"

STATUSES: Mapping[type[errors.RequestError], tuple[int, str]] = {
    errors.InvalidRequest: (400, _INVALID),
    Unauthorized: (401, "authentication_error"),
    Forbidden: (403, "permission_error"),
    errors.UnknownModel: (404, _INVALID),
    NoSuchRoute: (404, _INVALID),
    WrongMethod: (405, _INVALID),
    errors.TimedOut: (408, "timeout_error"),
    errors.TooLarge: (413, _INVALID),
    WrongContentType: (415, _INVALID),
    Unprocessable: (422, _INVALID),
    # Not one of the 5xx: clients try those again, and the likeliest answer would be the same.
    errors.UnreadableAnswer: (422, "model_error"),
    errors.Overloaded: (429, "rate_limit_error"),
    errors.EngineFailed: (500, "server_error"),
    InternalError: (500, "server_error"),
    errors.Unavailable: (503, "server_error"),
    errors.DeadlineMissed: (504, "timeout_error"),
}
"""Error class -> (HTTP status, OpenAI's `type`); a class that is not listed has its nearest ancestor's row."""


def status_of(error: errors.RequestError) -> tuple[int, str]:
    """The row of `STATUSES` for `error`."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500, "server_error"


def error_answer(error: errors.RequestError) -> ErrorAnswer:
    """`error` in OpenAI's form."""
    kind = status_of(error)[1]
    if isinstance(error, errors.UnreadableAnswer):
        told = UnreadableObject(
            message=error.message, type=kind, param=error.param, code=error.code, answer=error.answer
        )
        return ErrorAnswer(error=told)
    return ErrorAnswer(error=ErrorObject(message=error.message, type=kind, param=error.param, code=error.code))


def error_body(error: errors.RequestError) -> bytes:
    """OpenAI's error object, as JSON on one line."""
    return error_answer(error).model_dump_json().encode()


Envelope = Callable[[errors.RequestError, Request], bytes]
"""The body of an answer to a request that ends in an error, for paths whose clients expect another than OpenAI's."""


def error_response(error: errors.RequestError, body: bytes | None = None) -> Response:
    """The whole answer to a request that ends in `error`; `body`: in place of OpenAI's, as JSON."""
    headers: dict[str, str] = {}
    match error:
        case errors.Overloaded() | errors.Unavailable():
            headers["retry-after"] = str(error.retry_after_s)
        case errors.DeadlineMissed():
            # OpenAI's clients would ask again at once, and take as long.
            headers["x-should-retry"] = "false"
        case WrongMethod():
            headers["allow"] = error.allow
        case Unauthorized():
            headers["www-authenticate"] = "Bearer"
    return Response(error_body(error) if body is None else body, status_of(error)[0], headers, "application/json")


async def translate_http_exception(request: Request, error: Exception) -> Response:
    """Raise the router's own errors (no such path, wrong method) as ours, for the boundary to answer."""
    if not isinstance(error, HTTPException):
        raise error
    method, path = request.method, request.scope["path"]
    match error.status_code:
        case 404:
            raise NoSuchRoute(f"nothing answers at {path}; GET /docs lists the routes")
        case 405:
            allow = (error.headers or {}).get("Allow", "")
            raise WrongMethod(f"{path} does not answer to {method}; it answers to {allow}", allow=allow)
        case _:
            raise errors.InvalidRequest(str(error.detail))


async def translate_validation_error(request: Request, error: Exception) -> Response:
    """Raise FastAPI's own faults in paths and queries as ours: 400, with the place of the fault."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    raise errors.InvalidRequest(f"`{place}`: {first['msg']}", param=place)
