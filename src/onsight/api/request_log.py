"""One line a request in the log; no prompt, picture or video is ever in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping

from onsight.api.errors import status_of
from onsight.core.errors import RequestError
from onsight.tasks.record import Record

_log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)


def log_request(record: Record) -> None:
    """Tell what an ended request cost; `cached` of `tokens_in` were reused. A `Bookkeeper`."""
    _tell(
        "request",
        {
            "request_id": record.request_id,
            "caller": record.caller,
            "task": record.task,
            "model": record.model,
            "images": record.images,
            "videos": record.videos,
            "tokens_in": record.prompt_tokens,
            "cached": record.cached_tokens,
            "tokens_out": record.completion_tokens,
            "first_token_ms": _rounded(record.first_token_ms, 1),
            "tokens_per_s": _rounded(record.tokens_per_s, 1),
            "seconds": _rounded(record.seconds, 3),
            "reason": record.reason,
        },
    )


def log_refusal(request_id: str, caller: str, method: str, path: str, error: RequestError) -> None:
    """Tell which request was refused before any task took it up."""
    _tell(
        "refused",
        {
            "request_id": request_id,
            "caller": caller,
            "method": method,
            "path": path,
            "status": status_of(error)[0],
            "reason": error.code,
        },
    )


def _tell(what: str, fields: Mapping[str, str | float | None]) -> None:
    """One line of words; where the log is JSON, `fields` are fields there too."""
    shown = " ".join(f"{'id' if name == 'request_id' else name}={_shown(value)}" for name, value in fields.items())
    _log.info("%s %s", what, shown, extra={"fields": dict(fields)})


def _shown(value: str | float | None) -> str:
    """Text is quoted and escaped unless it is plain, so that no line break in it begins a forged line."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value[:200])
    return str(value)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
