"""One line a request in the log; no prompt, picture or video is ever in it."""

from __future__ import annotations

import json
import logging
import re

from onsight.core.errors import RequestError
from onsight.tasks.record import Record

_log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)


def log_request(record: Record) -> None:
    """Tell what an ended request cost; `cached` of `tokens_in` were reused. A `Bookkeeper`."""
    _log.info(
        "request id=%s caller=%s task=%s model=%s images=%d videos=%d tokens_in=%d cached=%d tokens_out=%d"
        " first_token_ms=%s tokens_per_s=%s reason=%s",
        _value(record.request_id),
        _value(record.caller),
        _value(record.task),
        _value(record.model),
        record.images,
        record.videos,
        record.prompt_tokens,
        record.cached_tokens,
        record.completion_tokens,
        _number(record.first_token_ms),
        _number(record.tokens_per_s),
        _value(record.reason),
    )


def log_refusal(request_id: str, caller: str, method: str, path: str, error: RequestError) -> None:
    """Tell which request was refused before any task took it up."""
    _log.info(
        "refused id=%s caller=%s method=%s path=%s reason=%s",
        _value(request_id),
        _value(caller),
        _value(method),
        _value(path),
        _value(error.code),
    )


def _value(text: str) -> str:
    """`text`, quoted and escaped unless it is plain, so that no line break in it begins a forged line."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text[:200])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
