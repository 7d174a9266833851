"""POST /infer with JSON, as the Llama 3.2 Vision service answered it: a prompt and a picture in, an envelope out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id
from onsight.api.errors import Forbidden, InternalError, Unauthorized
from onsight.api.health import timestamp
from onsight.api.json_body import read_json
from onsight.api.services import Services
from onsight.api.strict import Strict
from onsight.api.whole import answered
from onsight.core import errors
from onsight.core.generation import Sampling
from onsight.core.messages import Draft, ImageRef, Text
from onsight.tasks.chat import ChatCall
from onsight.tasks.roster import Loaded


class InferRequest(Strict):
    """The JSON body of `POST /infer`."""

    prompt: str = Field(description="What to ask about the picture.")
    image: str = Field(description="The picture's file: base64, or data:image/png;base64,...")
    max_tokens: int = Field(256, ge=1, description="Most tokens of the answer.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(0.95, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_missing(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item or name not in ("prompt", "image")}


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Metadata(BaseModel):
    """How the answer was sampled."""

    max_tokens: int
    temperature: float
    top_p: float


class InferAnswer(BaseModel):
    """An answer about a picture."""

    success: Literal[True] = True
    response_text: str
    model: str
    timestamp: str
    token_usage: TokenUsage
    metadata: Metadata
    error: None = None


class InferError(BaseModel):
    """The body of an error; `details` says when to try again, where that helps."""

    success: Literal[False] = False
    error: str
    error_type: Literal["validation", "model", "system"]
    timestamp: str
    details: dict[str, int] | None


async def answer_json(services: Services, loaded: Loaded, request: Request) -> Response:
    """Answer the prompt about the picture."""
    wire = await read_json(request, InferRequest)
    # Decoding belongs to the media door's threads, so bare base64 travels on as a data: URL. Nothing is fetched here.
    source = wire.image if wire.image.startswith("data:") else f"data:;base64,{wire.image}"
    metadata = Metadata(max_tokens=wire.max_tokens, temperature=wire.temperature, top_p=wire.top_p)
    call = ChatCall(
        drafts=(Draft("user", (ImageRef(source, param="image"), Text(wire.prompt))),),
        model=loaded.name,
        sampling=Sampling(max_tokens=wire.max_tokens, temperature=wire.temperature, top_p=wire.top_p),
        request_id=request_id(request.scope),
        caller=caller_name(request.scope),
    )
    answer = await answered(services, request, call)
    prompt_tokens, completion_tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
    usage = TokenUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
    whole = InferAnswer(
        response_text=answer.text, model=loaded.name, timestamp=timestamp(), token_usage=usage, metadata=metadata
    )
    return Response(whole.model_dump_json(), media_type="application/json")


def error_body(error: errors.RequestError) -> bytes:
    """`error` as that service put it."""
    details = None
    if isinstance(error, errors.Overloaded | errors.Unavailable):
        details = {"retry_after_s": error.retry_after_s}
    told = InferError(error=_message(error), error_type=_kind(error), timestamp=timestamp(), details=details)
    return told.model_dump_json().encode()


def _message(error: errors.RequestError) -> str:
    if error.code == "missing_field":
        return f"Missing required field: {error.param}"
    if isinstance(error, errors.InvalidMedia):
        return f"Invalid image data: {error.message}"
    return error.message


def _kind(error: errors.RequestError) -> Literal["validation", "model", "system"]:
    match error:
        case errors.Unavailable() | errors.EngineFailed():
            return "model"
        case errors.Overloaded() | errors.TimedOut() | InternalError() | Unauthorized() | Forbidden():
            return "system"
        case _:
            return "validation"
