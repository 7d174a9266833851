"""What Prometheus reads: names and buckets like vLLM's, under the prefix `onsight_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from onsight.core.byte_cache import ByteCache
from onsight.core.engine import EngineStatus
from onsight.core.errors import RequestError
from onsight.core.generation import FinishReason
from onsight.core.messages import Image
from onsight.tasks.admission import Admission
from onsight.tasks.record import Record
from onsight.tasks.roster import Roster

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; the same as vLLM's, so that its dashboards fit.
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Metrics:
    """Keeps its own registry; `record` is a `Bookkeeper`. The engines' gauges are read when Prometheus asks."""

    def __init__(self, roster: Roster, admission: Admission, decoded: ByteCache[Image]) -> None:
        """`decoded`: the pictures that the media door keeps."""
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(roster, admission, decoded))
        self._names = frozenset(loaded.name for loaded in roster.models)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"onsight_{name}", text, ("model_name",), buckets=buckets, registry=self._registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"onsight_{name}", text, ("model_name", *labels), registry=self._registry)

        self._first = histogram("time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN)
        self._waited = histogram("request_queue_time_seconds", "From request to its turn to be worked on.", _WHOLE)
        self._each = histogram("time_per_output_token_seconds", "Per token after the first one.", _PER_TOKEN)
        self._whole = histogram("e2e_request_latency_seconds", "From request to last token.", _WHOLE)
        self._prompt = counter("prompt_tokens", "Tokens of prompts of answered requests, pictures included.")
        self._cached = counter("prompt_tokens_cached", "Tokens of those prompts that were reused.")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._images = counter("images", "Pictures in requests.")
        self._videos = counter("videos", "Videos in requests.")
        self._media = counter("media_seconds", "Seconds in which pictures and videos were opened.")
        self._success = counter("request_success", "Requests answered to the end.", "finished_reason")
        self._failure = counter("request_failure", "Requests that ended in an error or were left.", "reason")

        refused = "Requests that ended in an error before a task had them."
        self._refused = Counter("onsight_refusals", refused, ("code",), registry=self._registry)

    def refuse(self, error: RequestError) -> None:
        """Count a request that no task took up."""
        self._refused.labels(error.code).inc()

    def record(self, record: Record) -> None:
        """Count an ended request."""
        # A name that a client made up must not become a time series of its own.
        model = record.model if record.model in self._names else "unknown"
        self._prompt.labels(model).inc(record.prompt_tokens)
        self._cached.labels(model).inc(record.cached_tokens)
        self._generated.labels(model).inc(record.completion_tokens)
        self._images.labels(model).inc(record.images)
        self._videos.labels(model).inc(record.videos)
        self._media.labels(model).inc(record.media_s)
        if record.turn_s is not None:
            self._waited.labels(model).observe(record.turn_s - record.began_s)
        if record.first_token_ms is not None:
            self._first.labels(model).observe(record.first_token_ms / 1000)
        if record.reason not in get_args(FinishReason):
            self._failure.labels(model, record.reason).inc()
            return
        self._success.labels(model, record.reason).inc()
        if record.tokens_per_s is not None:
            self._each.labels(model).observe(1 / record.tokens_per_s)
        if record.seconds is not None:
            self._whole.labels(model).observe(record.seconds)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    async def answer(self, request: Request) -> Response:
        """Counters and gauges for Prometheus."""
        return Response(self.render(), headers={"content-type": CONTENT_TYPE})


class _Gauges(Collector):
    """What is true at this moment: the engines' status, the queue and the media door's pictures."""

    def __init__(self, roster: Roster, admission: Admission, decoded: ByteCache[Image]) -> None:
        self._roster = roster
        self._admission = admission
        self._decoded = decoded

    def collect(self) -> Iterator[Metric]:
        statuses = [(loaded.name, loaded.engine.status()) for loaded in self._roster.models]
        yield _gauge("num_requests_running", "Requests that an engine works on.", statuses, lambda s: s.running)
        yield _gauge("num_requests_waiting", "Requests that wait in an engine.", statuses, lambda s: s.waiting)
        yield _gauge("kv_cache_usage_perc", "Share of the key-value cache in use; 1 is all.", statuses, _kv_share)
        yield _gauge("kv_cache_tokens", "Tokens that the key-value cache holds.", statuses, lambda s: s.kv_total_tokens)
        yield _gauge(
            "image_cache_bytes", "Bytes in the picture-feature cache.", statuses, lambda s: s.image_cache_bytes
        )
        yield _gauge("engine_ready", "1 when the engine answers.", statuses, lambda s: s.state == "ready")
        yield _counter("image_cache_hits", "Pictures found in the cache.", statuses, lambda s: s.image_cache_hits_total)
        yield _counter(
            "image_cache_misses", "Pictures not found there.", statuses, lambda s: s.image_cache_misses_total
        )
        yield _counter(
            "prefix_cached_tokens", "Prompt tokens reused.", statuses, lambda s: s.prefix_cached_tokens_total
        )
        yield _counter("engine_steps", "Steps that the engine has made.", statuses, lambda s: s.steps_total)
        yield _counter(
            "engine_step_requests",
            "Requests in those steps, counted in each: over the steps, how many share one. 0 before other servers.",
            statuses,
            lambda s: s.step_requests_total,
        )
        queue = self._admission
        yield GaugeMetricFamily("onsight_queue_places", "Places in the queue.", queue.places)
        yield GaugeMetricFamily("onsight_queue_places_taken", "Places that are taken.", queue.taken)
        yield CounterMetricFamily("onsight_requests_refused", "Requests refused by a full queue.", queue.refused_total)
        yield GaugeMetricFamily("onsight_queue_waiting", "Requests and pages that wait for their turn.", queue.waiting)
        yield GaugeMetricFamily("onsight_queue_pixels", "Pixels of requests that run and wait.", queue.pixels_held)
        yield GaugeMetricFamily("onsight_decoded_cache_bytes", "Bytes of decoded pictures kept.", self._decoded.bytes)
        yield CounterMetricFamily("onsight_decoded_cache_hits", "Pictures not decoded again.", self._decoded.hits)
        yield CounterMetricFamily("onsight_decoded_cache_misses", "Pictures decoded.", self._decoded.misses)


Reading = Callable[[EngineStatus], float]


def _gauge(name: str, text: str, statuses: list[tuple[str, EngineStatus]], reading: Reading) -> Metric:
    family = GaugeMetricFamily(f"onsight_{name}", text, labels=("model_name",))
    for model, status in statuses:
        family.add_metric((model,), reading(status))
    return family


def _counter(name: str, text: str, statuses: list[tuple[str, EngineStatus]], reading: Reading) -> Metric:
    family = CounterMetricFamily(f"onsight_{name}", text, labels=("model_name",))
    for model, status in statuses:
        family.add_metric((model,), reading(status))
    return family


def _kv_share(status: EngineStatus) -> float:
    return status.kv_used_tokens / status.kv_total_tokens if status.kv_total_tokens else 0.0
