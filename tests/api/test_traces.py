"""A request is a span: what a collector receives, and that nothing is loaded where no collector is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from onsight.api.traces import Traces
from onsight.core.generation import Finished, Usage
from onsight.tasks.record import Record, kept
from tests.servers import served


def test_nothing_of_opentelemetry_is_loaded_unless_it_is_asked_for() -> None:
    code = """
import sys
from onsight.config import load_settings
from onsight.serve import assemble
assemble(load_settings({"engine": "fake"}))
print("loaded:", *(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exp"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "loaded:"


@contextmanager
def collector() -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """Its address, and what gives the spans that came."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    def spans() -> list[Any]:
        return [
            span
            for body in received
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    listening = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1/traces", spans
    finally:
        listening.shutdown()


def test_a_collector_receives_a_span_with_its_moments_in_order_and_no_content() -> None:
    with collector() as (address, spans):
        traces = Traces(address)
        record = Record("id-1", "chat", "peek", "alice", images=1)
        with kept(record, (traces.record,)):
            record.turn_came()
            record.media_opened()
            record.token()
            record.finished(Finished("stop", Usage(7, 3)))
        failed = Record("id-2", "chat", "peek", "bob", reason="queue_full")
        failed.ended_s = failed.began_s
        traces.record(failed)
        traces.close()
        whole, broken = sorted(spans(), key=lambda span: span.start_time_unix_nano)
    assert [event.name for event in whole.events] == ["queue left", "media opened", "first token"]
    moments = [whole.start_time_unix_nano, *(event.time_unix_nano for event in whole.events), whole.end_time_unix_nano]
    assert moments == sorted(moments)
    told = {one.key: one.value for one in whole.attributes}
    assert (told["gen_ai.usage.input_tokens"].int_value, told["onsight.caller"].string_value) == (7, "alice")
    assert (whole.status.code, broken.status.code, broken.status.message) == (0, 2, "queue_full")


def test_a_span_is_part_of_its_callers_trace() -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    given = {"one": f"00-{trace}-{parent}-01", "none": None, "odd": "00-nothing-of-the-kind-01"}
    with collector() as (address, spans), served("--engine", "fake", "--otlp-endpoint", address) as server:
        with httpx.Client(base_url=server.url) as client:
            for name, traceparent in given.items():
                headers = {"x-request-id": name} | ({} if traceparent is None else {"traceparent": traceparent})
                body = {"messages": [{"role": "user", "content": "hi"}], "stream": name == "one"}
                assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        assert server.stop() == 0
        made = {
            attribute.value.string_value: span
            for span in spans()
            for attribute in span.attributes
            if attribute.key == "onsight.request_id"
        }
    assert (made["one"].trace_id.hex(), made["one"].parent_span_id.hex()) == (trace, parent)
    for name in ("none", "odd"):
        assert made[name].trace_id.hex() != trace
        assert made[name].parent_span_id == b""
