"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from onsight.engines.fake_engine import FakeScript
from onsight.tasks.record import Record
from tests.api.conftest import Bench, hello, user
from tests.api.test_openai_chat import png


async def read(bench: Bench) -> dict[tuple[str, str], float]:
    """(name, the labels but the model's) -> value."""
    text = (await bench.get("/metrics")).text
    return {
        (sample.name, ",".join(value for label, value in sorted(sample.labels.items()) if label != "model_name")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_an_answered_request_is_counted(bench: Bench) -> None:
    picture = {"type": "image_url", "image_url": f"data:image/png;base64,{png()}"}
    await bench.chat(messages=user({"type": "text", "text": "look here"}, picture), max_tokens=5)
    await bench.chat(stream=True)
    metrics = await read(bench)
    assert metrics["onsight_prompt_tokens_total", ""] == 2 + 16 + 1
    assert metrics["onsight_generation_tokens_total", ""] == 5 + 21
    assert metrics["onsight_images_total", ""] == 1
    assert metrics["onsight_request_success_total", "length"] == 1
    assert metrics["onsight_request_success_total", "stop"] == 1
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        assert metrics[f"onsight_{name}_seconds_count", ""] == 2
    assert metrics["onsight_num_requests_running", ""] == 0
    assert metrics["onsight_num_requests_waiting", ""] == 0
    assert metrics["onsight_queue_places", ""] == 8
    assert metrics["onsight_engine_ready", ""] == 1
    assert metrics["onsight_engine_step_requests_total", ""] == metrics["onsight_engine_steps_total", ""] == 5 + 21


async def test_an_answer_that_calls_is_no_failure(bench: Bench) -> None:
    tool = {"type": "function", "function": {"name": "wait"}}
    await bench.chat(tools=[tool], tool_choice="required")
    metrics = await read(bench)
    assert metrics["onsight_request_success_total", "tool_calls"] == 1
    assert not any(name == "onsight_request_failure_total" for name, _ in metrics)


async def test_failures_and_refusals_are_counted_by_their_reason(build: Callable[..., Bench]) -> None:
    bench = build(FakeScript(fail_after=1))
    await bench.chat()
    await bench.chat(messages=[*hello(), {"role": "assistant", "content": "x"}])
    await bench.chat(n=9)
    with bench.admission.place(8):
        await bench.chat()
    metrics = await read(bench)
    assert metrics["onsight_request_failure_total", "engine_error"] == 1
    assert metrics["onsight_request_failure_total", "invalid_request"] == 1
    assert metrics["onsight_requests_refused_total", ""] == 1
    assert not any(name == "onsight_request_success_total" for name, _ in metrics)


async def test_names_that_clients_make_up_become_no_series(bench: Bench) -> None:
    await bench.chat(model="made-up")
    bench.metrics.record(Record("id", "chat", "made-up", reason="stop"))
    text = bench.metrics.render().decode()
    assert "made-up" not in text
    assert 'onsight_request_success_total{finished_reason="stop",model_name="unknown"} 1.0' in text


async def test_two_applications_count_apart(build: Callable[..., Bench]) -> None:
    first, second = build(), build()
    await first.chat()
    assert ("onsight_generation_tokens_total", "") not in await read(second)


async def test_waiting_media_and_refusals_before_any_task_are_counted(bench: Bench) -> None:
    picture = {"type": "image_url", "image_url": f"data:image/png;base64,{png()}"}
    await bench.chat(messages=user({"type": "text", "text": "look here"}, picture), max_tokens=5)
    await bench.chat(no_such_field=1)
    await bench.get("/nothing")
    metrics = await read(bench)
    assert metrics["onsight_media_seconds_total", ""] > 0
    assert metrics["onsight_request_queue_time_seconds_count", ""] == 1
    assert metrics["onsight_queue_waiting", ""] == metrics["onsight_queue_pixels", ""] == 0
    assert metrics["onsight_refusals_total", "unknown_field"] == metrics["onsight_refusals_total", "not_found"] == 1
