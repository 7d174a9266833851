"""The engine beside transformers' own `generate`, on random weights of the published shapes.

python -m benchmarks.families [--shapes NAME ...] [--minutes N] [--rounds N] [--tokens N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from PIL import Image as Pillow

from benchmarks.report import RESULTS, Aim, Cell, Report, Table, median, publish
from benchmarks.screens import screens
from benchmarks.shapes import SHAPES, Shape, decode_bytes, outline, reference, weights, write_shape
from onsight.core.generation import Finished, GenerateRequest, Sampling, TextDelta
from onsight.core.messages import Image, Message, Text
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.models.card import find_card
from tests.engines.torch_engine.reference import Reference

QUESTION = "What is on this screen?"
WORDS = "say what you see in this picture, and where; "
REPEATS = 12
SPARE_BYTES = 2 << 30


class WrongLength(RuntimeError):
    """An answer has not as many tokens as the others, so that nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `requests` at once, `tokens` of each answer, and for how long.

    In every round each side does everything once; no round of a shape begins once `budget_s` seconds have gone by.
    """

    device: torch.device
    dtype: torch.dtype
    requests: tuple[int, ...]
    tokens: int
    rounds: int
    budget_s: float


@dataclass(slots=True)
class Measured:
    """One shape's figures, a number a round: `rates` in tokens/s by (side, requests), `firsts` in seconds by
    (side, screen). `limits`: tokens/s that memory alone allows, by requests. `same`: equal answers, of so many."""

    shape: Shape
    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    firsts: dict[tuple[str, tuple[int, int]], list[float]] = field(default_factory=dict)
    prompt_tokens: dict[tuple[int, int], int] = field(default_factory=dict)
    limits: dict[int, float] = field(default_factory=dict)
    same: list[bool] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Written:
    """Answers written at once: their texts, and tokens/s from the moment when all had their first token."""

    texts: tuple[str, ...]
    tokens_per_s: float


class Side(Protocol):
    """One of the two that are compared."""

    name: str

    async def write(self, prompts: Sequence[Message], tokens: int) -> Written:
        """Answer all prompts at once with `tokens` tokens each. Raises WrongLength."""
        ...

    async def first(self, prompt: Message) -> tuple[float, int]:
        """(seconds until the first token, tokens of the prompt), from pixels on: resizing and encoding count."""
        ...


class Ours:
    """The engine, in this process; its thread sleeps while the other side is measured."""

    name = "Onsight"

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine

    async def write(self, prompts: Sequence[Message], tokens: int) -> Written:
        """See `Side.write`. Every token is one visible piece (see `shapes`), so pieces are counted."""
        done = await asyncio.gather(*(self._answer(prompt, tokens) for prompt in prompts))
        began_s, ended_s = max(times[0] for _, times, _ in done), max(times[-1] for _, times, _ in done)
        if any(len(times) != tokens for _, times, _ in done):
            raise WrongLength(f"answers of {[len(times) for _, times, _ in done]} tokens; asked for were {tokens}")
        after = sum(at > began_s for _, times, _ in done for at in times)
        return Written(tuple(text for text, _, _ in done), after / (ended_s - began_s))

    async def first(self, prompt: Message) -> tuple[float, int]:
        """See `Side.first`."""
        began_s = time.perf_counter()
        _, times, prompt_tokens = await self._answer(prompt, 1)
        return times[0] - began_s, prompt_tokens

    async def _answer(self, prompt: Message, tokens: int) -> tuple[str, list[float], int]:
        """Text, when each piece of it came, and how many tokens the prompt had."""
        text, times = "", []
        request = GenerateRequest((prompt,), Sampling(max_tokens=tokens, temperature=0.0))
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                match event:
                    case TextDelta(piece, _):
                        text += piece
                        times.append(time.perf_counter())
                    case Finished(_, usage):
                        return text, times, usage.prompt_tokens
        raise RuntimeError("the engine ended an answer without saying so")


class Generate:
    """transformers' model and processing; several prompts are one batch, which is the best that `generate` can do."""

    name = "generate"

    def __init__(self, side: Reference, plan: Plan) -> None:
        self._reference = side
        self._model = side.model.to(plan.device, plan.dtype)
        self._plan = plan
        self._threads = torch.get_num_threads()

    async def write(self, prompts: Sequence[Message], tokens: int) -> Written:
        """See `Side.write`; the prompts must have equally many tokens."""
        single = [self._reference.inputs([prompt]) for prompt in prompts]
        made, times = self._run({name: torch.cat([one[name] for one in single]) for name in single[0]}, tokens)
        rate = len(prompts) * (tokens - 1) / (times[-1] - times[0])
        texts = self._reference.tokenizer.batch_decode(made, skip_special_tokens=True)
        return Written(tuple(texts), rate)

    async def first(self, prompt: Message) -> tuple[float, int]:
        """See `Side.first`."""
        began_s = time.perf_counter()
        inputs = self._reference.inputs([prompt])
        _, times = self._run(inputs, 1)
        return times[0] - began_s, inputs["input_ids"].shape[1]

    def _run(self, inputs: dict[str, torch.Tensor], tokens: int) -> tuple[torch.Tensor, list[float]]:
        """The answers' ids [prompts, tokens], and when each token was there."""
        times: list[float] = []

        def look(ids: torch.Tensor, scores: torch.Tensor, **rest: Any) -> torch.Tensor:
            if ids.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        torch.set_num_threads(self._threads)  # the engine may have left it at one
        plan = self._plan
        on_device = {
            name: value.to(plan.device, plan.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            made = self._model.generate(**on_device, max_new_tokens=tokens, do_sample=False, stopping_criteria=[look])
        answers = made[:, inputs["input_ids"].shape[1] :]
        if answers.shape[1] != tokens:
            raise WrongLength(f"generate wrote {answers.shape[1]} tokens; asked for were {tokens}")
        return answers, times


class Pictures:
    """Different drawn screens of any size, without end: tiles of small ones, each used once."""

    def __init__(self) -> None:
        self._windows = screens()

    def next(self, width: int, height: int) -> Image:
        ground = Pillow.new("RGB", (width, height), "white")
        window = next(self._windows).resize((max(1, width // 3), max(1, height // 2)))
        for column, row in itertools.product(range(3), range(2)):
            ground.paste(window.rotate(90 * (column + row)), (column * width // 3, row * height // 2))
        return Image.of(ground.tobytes(), width, height)


def prompts(count: int, numbers: itertools.count[int]) -> list[Message]:
    """So many text prompts of equal length that no one has seen; they differ from their first words on."""
    return [Message("user", (Text(f"{next(numbers):06d} {WORDS * REPEATS}"),)) for _ in range(count)]


async def measure(shape: Shape, folder: Path, plan: Plan) -> Measured:
    """All rounds of one shape, the sides taking turns at being first."""
    found = Measured(shape, limits=limits(shape, folder, plan))
    drawn, numbers = Pictures(), itertools.count(1)
    async with both(shape, folder, plan) as sides:
        for side in sides:  # not counted: the first requests pay for lazy set-up
            await side.write(prompts(1, numbers), 2)
        began_s = time.perf_counter()
        for number in range(plan.rounds):
            if number and time.perf_counter() - began_s > plan.budget_s:
                print(f"{shape.name}: the time is over after {number} of {plan.rounds} rounds", flush=True)
                break
            await _round(found, sides if number % 2 == 0 else sides[::-1], drawn, numbers, plan)
    return found


async def _round(
    found: Measured, sides: Sequence[Side], drawn: Pictures, numbers: itertools.count[int], plan: Plan
) -> None:
    """Each side does everything once; both get the same prompts and pictures."""
    for count in plan.requests:
        asked = prompts(count, numbers)
        written = {}
        for side in sides:
            written[side.name] = await side.write(asked, plan.tokens)
            found.rates.setdefault((side.name, count), []).append(written[side.name].tokens_per_s)
            print(
                f"{found.shape.name}, {count} request(s), {side.name}: {written[side.name].tokens_per_s:.1f} tokens/s"
            )
        one, other = (written[name].texts for name in (Ours.name, Generate.name))
        found.same += [ours == theirs for ours, theirs in zip(one, other, strict=True)]
    for size in found.shape.screens:
        asking = Message("user", (drawn.next(*size), Text(QUESTION)))
        for side in sides:
            seconds, found.prompt_tokens[size] = await side.first(asking)
            found.firsts.setdefault((side.name, size), []).append(seconds)
            print(f"{found.shape.name}, {size[0]}x{size[1]}, {side.name}: {seconds:.2f} s", flush=True)


@asynccontextmanager
async def both(shape: Shape, folder: Path, plan: Plan) -> AsyncIterator[tuple[Side, Side]]:
    """The two sides, loaded from one folder and let go afterwards."""
    settings = TorchSettings(
        device="cuda" if plan.device.type == "cuda" else "cpu",
        dtype="bfloat16" if plan.dtype == torch.bfloat16 else "float32",
        max_num_seqs=max(plan.requests),
        max_model_len=shape.context,
    )
    engine = TorchEngine(folder, find_card(shape.name, folder), settings)
    await engine.start()
    try:
        yield Ours(engine), Generate(reference(shape, folder), plan)
    finally:
        await engine.close()


def limits(shape: Shape, folder: Path, plan: Plan) -> dict[int, float]:
    """Tokens/s at which reading weights, keys and values once a step would take all of the memory's speed."""
    item = plan.dtype.itemsize
    model = outline(shape, folder)
    text = model.config.text_config  # type: ignore[union-attr]
    read = decode_bytes(model, shape.tied, item)
    head = text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * item
    context = len(WORDS) * REPEATS // 3 + plan.tokens // 2
    speed = bandwidth(plan.device)
    return {count: count * speed / (read + count * context * token) for count in plan.requests}


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a plain copy, reading and writing counted, the best of five."""
    count = (1 << 30 if device.type == "cuda" else 1 << 28) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    best = float("inf")
    for _ in range(6):  # the first touches the memory
        began_s = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began_s)
    return 8 * count / best


def obstacle(shape: Shape, plan: Plan, disk: Path) -> str | None:
    """Why a shape cannot be measured here, as a sentence; None when it can."""
    numbers = weights(shape)
    needed = 2 * numbers * plan.dtype.itemsize + SPARE_BYTES  # ours and generate's
    free = torch.cuda.mem_get_info(plan.device)[0] if plan.device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        return (
            f"{shape.name} was left out: two copies in {_short(plan.dtype)} and some room take {needed / 2**30:.0f} GiB"
            f" of memory, and {free / 2**30:.0f} GiB are free."
        )
    room = psutil.disk_usage(str(disk)).free
    if 2 * numbers > room:
        return (
            f"{shape.name} was left out: its files take {2 * numbers / 2**30:.0f} GiB, {room / 2**30:.0f} GiB are free."
        )
    return None


def report(measured: Sequence[Measured], left_out: Sequence[str], plan: Plan) -> Report:
    """The tables: tokens/s and seconds to first token, side by side with ratios by round."""
    rates = tuple(row for one in measured for row in _rate_rows(one, plan))
    firsts = tuple(row for one in measured for row in _first_rows(one))
    aims = tuple(
        Aim(
            f"tokens/s, {one.shape.name}, {count} request(s), against generate",
            1.0,
            median(_ratios(one.rates, count)),
            "x",
            at_least=True,
        )
        for one in measured
        for count in plan.requests
    )
    ratio = ("ratio", "lowest round", "highest round")
    return Report(
        "families",
        "Families: the engine beside transformers' generate, random weights of published shapes",
        aims,
        (
            Table(
                "Writing, tokens/s",
                ("shape", "requests", "Onsight", "generate", *ratio, "memory's limit", "Onsight of the limit, %"),
                rates,
            ),
            Table(
                "First token, seconds",
                ("shape", "screen, px", "prompt tokens", "Onsight", "generate", *ratio),
                firsts,
            ),
        ),
        (*left_out, *_notes(measured, plan)),
        {one.shape.name: _raw(one) for one in measured},
    )


def _rate_rows(one: Measured, plan: Plan) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for count in plan.requests:
        ours, theirs = (median(one.rates[name, count]) for name in (Ours.name, Generate.name))
        limit = one.limits[count]
        ratios = _spread(_ratios(one.rates, count))
        rows.append((one.shape.name, count, ours, theirs, *ratios, limit, 100 * ours / limit))
    return rows


def _first_rows(one: Measured) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for size in one.shape.screens:
        ours, theirs = (median(one.firsts[name, size]) for name in (Ours.name, Generate.name))
        ratios = _spread(_ratios(one.firsts, size))
        rows.append((one.shape.name, f"{size[0]}x{size[1]}", one.prompt_tokens[size], ours, theirs, *ratios))
    return rows


def _ratios(figures: dict[tuple[str, Any], list[float]], what: Any) -> list[float]:
    """Ours over generate's, round by round."""
    pairs = zip(figures[Ours.name, what], figures[Generate.name, what], strict=True)
    return [ours / theirs for ours, theirs in pairs]


def _spread(ratios: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{value:.2f}x" for value in (median(ratios), min(ratios), max(ratios)))


def _notes(measured: Sequence[Measured], plan: Plan) -> tuple[str, ...]:
    rounds = ", ".join(f"{one.shape.name} {len(one.rates[Ours.name, plan.requests[0]])}" for one in measured)
    same = ", ".join(f"{one.shape.name} {sum(one.same)} of {len(one.same)}" for one in measured)
    device = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "the processor"
    return (
        f"Device: {device}, {_short(plan.dtype)}, threads: {torch.get_num_threads()}. Rounds: {rounds}. In each round"
        " both sides, in one process, get the same prompts; who is first changes.",
        f"Writing: so many text prompts at once, {plan.tokens} tokens each (checked), none seen before. tokens/s counts"
        " from the moment when all answers have their first token. generate gets all prompts as one batch of equal"
        " lengths, which is the best case for it: nobody joins or leaves.",
        "First token: one screen that nobody has seen and a short question, from raw pixels on; resizing, encoding and"
        " reading the prompt count on both sides, decoding a file on neither.",
        "The memory's limit: the speed of a plain copy, measured here, over the bytes of the language model's weights"
        " and of all keys and values, each read once a step.",
        f"Equal answers, letter for letter: {same}. In bfloat16 the order of sums decides between near-equal tokens.",
        "Weights are random and the vocabulary is a stand-in of the true size; shapes and picture settings are true.",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _raw(one: Measured) -> dict[str, object]:
    return {
        "tokens_per_s": {f"{name}, {count} requests": rounds for (name, count), rounds in one.rates.items()},
        "first_s": {f"{name}, {size[0]}x{size[1]}": rounds for (name, size), rounds in one.firsts.items()},
        "limit_tokens_per_s": {str(count): limit for count, limit in one.limits.items()},
    }


def run(shapes: Sequence[Shape], plan: Plan, out: Path) -> None:
    """Measure every shape that fits, each with its share of the time, and write the report to `out`."""
    measured, left_out = [], []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as temporary:
            reason = obstacle(shape, plan, Path(temporary))
            if reason is not None:
                print(reason, flush=True)
                left_out.append(reason)
                continue
            folder = write_shape(shape, Path(temporary) / "model")
            measured.append(asyncio.run(measure(shape, folder, plan)))
    publish(report(measured, left_out, plan), out)


def main() -> None:
    cuda = torch.cuda.is_available()
    usual = ["Qwen2.5-VL-7B"] if cuda else ["SmolVLM2-256M", "SmolVLM2-500M", "Qwen2.5-VL-3B"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=usual, help="what to measure")
    parser.add_argument("--minutes", type=float, default=15.0, help="no round begins after so many minutes of rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 64] if cuda else [1, 4, 8])
    parser.add_argument("--tokens", type=int, default=128 if cuda else 32, help="tokens of each answer, at least 2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    arguments = parser.parse_args()
    plan = Plan(
        torch.device("cuda" if cuda else "cpu"),
        torch.bfloat16 if cuda else torch.float32,
        tuple(arguments.requests),
        max(2, arguments.tokens),
        arguments.rounds,
        arguments.minutes * 60 / len(arguments.shapes),
    )
    run([SHAPES[name] for name in arguments.shapes], plan, arguments.out)


if __name__ == "__main__":
    main()
