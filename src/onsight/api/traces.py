"""A span a request, for OpenTelemetry: made of what its `Record` noted, once it has ended; needs the extra `otel`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import get_args

from starlette.types import Scope

from onsight import __version__
from onsight.core.errors import StartError
from onsight.core.generation import FinishReason
from onsight.tasks.record import Record

_TRACE_HEADERS = frozenset((b"traceparent", b"tracestate"))
_caller: ContextVar[Mapping[str, str]] = ContextVar("caller", default=MappingProxyType({}))
"""What the request at hand says of its caller's trace: every task that works for it inherits this."""


def remember_trace(scope: Scope) -> None:
    """Note which trace a request belongs to, if its caller says so (W3C's `traceparent`), for the span that it gets."""
    told = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS}
    _caller.set(told)


class Traces:
    """`record` is a `Bookkeeper`. Without one of these, nothing of OpenTelemetry is loaded."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: a collector's URL for spans in OTLP over HTTP. Raises StartError where the extra is missing."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise StartError(
                "otlp_endpoint needs OpenTelemetry, which is not installed: pip install 'onsight[otel]'"
            ) from None
        resource = Resource.create({"service.name": "onsight", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        # Sent from a thread of its own, in batches; what a collector does not take in time is dropped, and said so.
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("onsight", __version__)

    def record(self, record: Record) -> None:
        """Tell of an ended request, in its caller's trace if it has one: no word of what it said or saw."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ahead_ns = time.time_ns() - time.monotonic_ns()

        def wall_ns(moment_s: float) -> int:
            return int(moment_s * 1e9) + ahead_ns

        span = self._tracer.start_span(
            f"{record.task} {record.model}",
            context=TraceContextTextMapPropagator().extract(_caller.get()),
            kind=SpanKind.SERVER,
            start_time=wall_ns(record.began_s),
            attributes={
                "gen_ai.operation.name": record.task,
                "gen_ai.request.model": record.model,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "gen_ai.response.finish_reasons": (record.reason,),
                "onsight.request_id": record.request_id,
                "onsight.caller": record.caller,
                "onsight.cached_tokens": record.cached_tokens,
                "onsight.images": record.images,
                "onsight.videos": record.videos,
            },
        )
        for name, moment_s in (
            ("queue left", record.turn_s),
            ("media opened", record.opened_s),
            ("first token", record.first_token_s),
        ):
            if moment_s is not None:
                span.add_event(name, timestamp=wall_ns(moment_s))
        if record.reason not in get_args(FinishReason):
            span.set_status(StatusCode.ERROR, record.reason)
        span.end(wall_ns(record.ended_s or record.began_s))

    def close(self) -> None:
        """Send what is left; waits for the collector for a while, so not for the event loop."""
        self._provider.shutdown()
