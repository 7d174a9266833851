"""POST /infer with a form, as the Phi-3.5-vision captioning service answered it: `file` in, `caption` out."""

from __future__ import annotations

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from onsight.api.auth import caller_name
from onsight.api.boundary import request_id
from onsight.api.multipart import read_multipart
from onsight.api.services import Services
from onsight.api.whole import answered
from onsight.core.errors import InvalidRequest, RequestError
from onsight.core.messages import ImageRef
from onsight.tasks import caption
from onsight.tasks.asking import PictureCall
from onsight.tasks.roster import Loaded

_MAX_TOKENS = 100

FORM = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary", "description": "The picture."}},
    "required": ["file"],
    "additionalProperties": False,
}
"""The body, for the description."""


class Caption(BaseModel):
    """The likeliest caption, of at most 100 tokens."""

    caption: str


class Detail(BaseModel):
    """The body of an error."""

    detail: str


async def answer_form(services: Services, loaded: Loaded, request: Request) -> Response:
    """Caption the form's picture."""
    form = await read_multipart(request)
    for name in form.texts:
        raise InvalidRequest(f"unknown field `{name}`; send the picture as `file`", param=name, code="unknown_field")
    if form.file is None:
        raise InvalidRequest("`file` is missing", param="file", code="missing_field")
    scope = request.scope
    call = PictureCall(ImageRef(form.file, param="file"), loaded, _MAX_TOKENS, request_id(scope), caller_name(scope))
    answer = await answered(services, request, caption.prompt(call))
    return Response(Caption(caption=caption.read(answer)).model_dump_json(), media_type="application/json")


def error_body(error: RequestError) -> bytes:
    """`error` as that service put it."""
    return Detail(detail=error.message).model_dump_json().encode()
