"""A request is a span: what a collector receives, and that nothing is loaded where no collector is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from onsight.core.generation import Finished, Usage
from onsight.tasks.record import Record, kept


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


def test_a_collector_receives_a_span_with_its_moments_in_order_and_no_content() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from onsight.api.traces import Traces

    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    traces = Traces(f"http://127.0.0.1:{collector.server_port}/v1/traces")
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
    collector.shutdown()
    spans = [
        span
        for body in received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    whole, broken = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert [event.name for event in whole.events] == ["queue left", "media opened", "first token"]
    moments = [whole.start_time_unix_nano, *(event.time_unix_nano for event in whole.events), whole.end_time_unix_nano]
    assert moments == sorted(moments)
    told = {one.key: one.value for one in whole.attributes}
    assert (told["gen_ai.usage.input_tokens"].int_value, told["onsight.caller"].string_value) == (7, "alice")
    assert (whole.status.code, broken.status.code, broken.status.message) == (0, 2, "queue_full")
