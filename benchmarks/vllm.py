"""Peek on vLLM through Onsight, beside Onsight's own engine: the same tokens, as likely; schemas; a killed vLLM.

VLLM_PYTHON=/opt/vllm/bin/python python -m benchmarks.vllm [--vllm benchmarks/peers/vllm_cpu/vllm] [--out FOLDER]

vLLM runs in an environment of its own: `benchmarks/peers/vllm_cpu/vllm` says how it is made where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.client import question
from benchmarks.report import ROOT, Aim, Cell, Report, Table, publish
from benchmarks.screens import data_url, png, screens
from benchmarks.server import RunningServer, model_folder, onsight, running

RESULTS = ROOT / "docs" / "results"
QUESTIONS = ("Describe the screen.", "Read the screen.", "How many widgets are there?")
PICTURES = 4
MOST_APART = 0.05
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
START_S = 600.0
NOTICED_S = 1.0
"""At most so long after a broken stream /ready may still say 200: its end is seen before that of the processes."""
# A small model may write line breaks between JSON's parts for as long as it is let. Braces are doubled for `Command`.
JSON_ARGS = '{{"backend": "xgrammar", "disable_any_whitespace": true}}'
VLLM_ARGS = f"--dtype float32 --enforce-eager --structured-outputs-config '{JSON_ARGS}'"

Tokens = list[tuple[str, float]]


def ask(server: RunningServer, picture: bytes, text: str, **fields: object) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": text}]
    body = {"model": "peek", "messages": [{"role": "user", "content": parts}], "temperature": 0, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)


def tokens_of(server: RunningServer, picture: bytes, text: str) -> Tokens:
    """The greedy answer's tokens with their log-probabilities."""
    answer = ask(server, picture, text, max_tokens=48, logprobs=True)
    answer.raise_for_status()
    return [(one["token"], one["logprob"]) for one in answer.json()["choices"][0]["logprobs"]["content"]]


def compare(ours: RunningServer, theirs: RunningServer) -> tuple[int, int, int, float]:
    """(answers, those with the same tokens, tokens compared, largest difference of a log-probability)."""
    answers = same = compared = 0
    apart = 0.0
    for picture, _ in zip(map(png, screens()), range(PICTURES), strict=False):
        for text in QUESTIONS:
            own, other = tokens_of(ours, picture, text), tokens_of(theirs, picture, text)
            answers += 1
            same += [token for token, _ in own] == [token for token, _ in other]
            for (token, one), (their_token, their_one) in zip(own, other, strict=False):
                if token != their_token:
                    break
                compared += 1
                apart = max(apart, abs(one - their_one))
    return answers, same, compared, apart


def holds_schema(server: RunningServer, picture: bytes) -> bool:
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA, "strict": True}}
    answer = ask(server, picture, "What colour?", max_tokens=32, response_format=wanted)
    answer.raise_for_status()
    return json.loads(answer.json()["choices"][0]["message"]["content"]) in ({"colour": "red"}, {"colour": "blue"})


def kill_in_mid_stream(server: RunningServer, picture: bytes) -> tuple[str, int, float]:
    """(how the stream ended, what /ready said meanwhile, seconds until it was ready again)."""
    # Hot, it babbles for as long as it may, where a sound answer could end before the signal comes.
    body = json.dumps(json.loads(question(picture, "Read the screen.", tokens=400)) | {"temperature": 2.0}).encode()
    headers, ended = {"content-type": "application/json"}, "nothing"
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=300
    ) as answer:
        for number, line in enumerate(answer.iter_lines()):
            if number == 4:
                for child in psutil.Process(server.process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):  # some end with those before them
                        if "vllm" in " ".join(child.cmdline()).lower():
                            child.send_signal(signal.SIGKILL)
            if '"error"' in line:
                ended = str(json.loads(line.removeprefix("data: "))["error"]["code"])
    began_s = time.perf_counter()
    while (meanwhile := httpx.get(f"{server.url}/ready", timeout=30).status_code) == 200:
        if time.perf_counter() - began_s > NOTICED_S:
            break
    while httpx.get(f"{server.url}/ready", timeout=30).status_code != 200:
        if time.perf_counter() - began_s > START_S:
            raise RuntimeError("vLLM did not come back")
        time.sleep(0.2)
    return ended, meanwhile, time.perf_counter() - began_s


def report(found: tuple[int, int, int, float], schema: bool, killed: tuple[str, int, float], after: bool) -> Report:
    answers, same, compared, apart = found
    ended, meanwhile, seconds = killed
    counted = (
        ("answers with the same tokens as the torch engine's, greedy", answers, same),
        ("answers that hold a JSON schema", 1, schema),
        ("answers cut by a killed vLLM that end with `engine_error`", 1, ended == "engine_error"),
        (
            "/ready says 503 within a second and until vLLM is back; then requests are answered",
            1,
            meanwhile == 503 and after,
        ),
    )
    aims = (
        *(Aim(name, float(wanted), float(reached), "", at_least=True) for name, wanted, reached in counted),
        Aim("largest difference of a log-probability", MOST_APART, apart, ""),
    )
    rows: tuple[tuple[Cell, ...], ...] = ((answers, compared, f"{seconds:.0f}"),)
    table = Table("Figures", ("answers", "tokens compared", "seconds until vLLM was back"), rows)
    notes = (
        "Peek's own weights in float32 on both sides, the same screens and questions through the same API: `onsight"
        " serve --engine vllm` on vllm-cpu 0.32 (benchmarks/peers/vllm_cpu) and `onsight serve --engine torch`.",
    )
    return Report("vllm", "vLLM behind Onsight", aims, (table,), notes)


def main(given: Sequence[str] | None = None) -> None:
    """Run every check and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, default=ROOT / "benchmarks" / "peers" / "vllm_cpu" / "vllm")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = str(model_folder("peek"))
    vllm = ("--engine", "vllm", "--vllm", str(arguments.vllm.resolve()))
    flags = (*vllm, "--vllm-args", VLLM_ARGS, "--max-model-len", "2048", "--no-ui")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        logs = Path(temporary)
        theirs = stack.enter_context(running(onsight(folder, *flags), logs))
        ours = stack.enter_context(running(onsight(folder, "--dtype", "float32", "--no-ui"), logs))
        found = compare(ours, theirs)
        picture = png(next(screens()))
        schema = holds_schema(theirs, picture)
        killed = kill_in_mid_stream(theirs, picture)
        after = ask(theirs, picture, "Describe the screen.", max_tokens=8).status_code == 200
    publish(report(found, schema, killed, after), arguments.out)


if __name__ == "__main__":
    main()
