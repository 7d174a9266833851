"""What 4 and 8 bits cost in answers: errors by layer, KL of the logits, and Peek's own evaluation, beside float32.

python -m benchmarks.few_bits [--screens N] [--minutes M] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.report import Aim, aims_table, commit
from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Image, Message, Text
from onsight.engines.torch_engine import TorchEngine, TorchSettings
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.quantize import QuantisedLinear, Scheme
from onsight.engines.torch_engine.settings import QuantizeChoice
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import find_card
from tests.engines.fidelity import FAMILIES, Seen, WatchedEngine
from tests.engines.torch_engine.asking import Answer, answer, asking, turn
from tests.tiny_models import draw
from training.draw import EVALUATION_STYLE, Screen, draw_screen
from training.evaluate import FIRST_SEED, LONGEST, ROWS, Asked, evaluation_questions, score
from training.model import BUNDLED

CHOICES: tuple[QuantizeChoice, ...] = ("none", "int8", "int4")
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
PATH = Path(__file__).parents[1] / "docs" / "results" / "int4.md"
MOST_LOST = 2.0
"""Points of Peek's evaluation that int4 may cost."""
_SLOTS = 16
_LOT = 25
"""Screens that every choice is asked about before the clock is looked at."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Of one model's logits from float32's: mean and largest KL in nats, and how often the same token is likeliest.

    Compared are the places of an answer up to the first token that differs.
    """

    mean: float
    largest: float
    same: float
    places: int


def weight_errors(folder: Path, scheme: Scheme) -> dict[str, float]:
    """By product: the size of the rounding errors of its weights, all together, beside the weights'."""
    errors: dict[str, float] = {}
    plain: dict[str, torch.Tensor] = {}

    def keep_plain(model: nn.Module) -> None:
        plain.update(
            {name: part.weight.detach().clone() for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        )

    def keep_errors(model: nn.Module) -> None:
        for name, part in model.named_modules():
            if isinstance(part, QuantisedLinear):
                true = torch.cat([plain[one] for one in part.parts])
                errors[name] = float((part.widen() - true).norm() / true.norm())

    card, vocabulary, cpu = find_card("peek", folder), Vocabulary(folder), torch.device("cpu")
    load_family(card.family, Checkpoint(folder, cpu, torch.float32, keep=keep_plain), vocabulary)
    load_family(card.family, Checkpoint(folder, cpu, torch.float32, scheme=scheme, keep=keep_errors), vocabulary)
    return errors


async def ask(folder: Path, quantize: QuantizeChoice, requests: Sequence[GenerateRequest]) -> list[Answer]:
    """All requests at once, in one engine."""
    settings = TorchSettings(device="cpu", quantize=quantize, max_num_seqs=_SLOTS)
    engine = WatchedEngine(folder, find_card("a model", folder), settings)
    await engine.start()
    try:
        return await asyncio.gather(*(answer(engine, request) for request in requests))
    finally:
        await engine.close()


async def layer_outputs(folder: Path, quantize: QuantizeChoice) -> list[torch.Tensor]:
    """What each of the decoder's layers makes of one prompt with a picture, the layers before it being as they are."""
    outputs: list[torch.Tensor] = []
    families: list[Family] = []

    def load(name: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Family:
        families.append(load_family(name, checkpoint, vocabulary))
        for layer in families[0].decoder._layers:
            layer.register_forward_hook(lambda module, given, made: outputs.append(made.float().clone()))
        return families[0]

    settings = TorchSettings(device="cpu", quantize=quantize, max_num_seqs=1)
    engine = TorchEngine(folder, find_card("a model", folder), settings, load_family=load)
    await engine.start()
    try:
        outputs.clear()
        await answer(engine, asking(turn(draw((200, 0, 0)), "What colour?"), max_tokens=1))
    finally:
        await engine.close()
    return outputs[: len(families[0].decoder._layers)]


async def layer_errors(folder: Path) -> list[dict[Scheme, float]]:
    """By layer: the size of the errors of its outputs, all together, beside the outputs'."""
    made = {choice: await layer_outputs(folder, choice) for choice in CHOICES}
    return [
        {scheme: float((made[scheme][place] - true).norm() / true.norm()) for scheme in SCHEMES}
        for place, true in enumerate(made["none"])
    ]


def distance(ours: Sequence[Answer], true: Sequence[Answer]) -> Distance:
    """How far answers of few bits are from float32's to the same requests."""
    kls, same = [], []
    for one, other in zip(ours, true, strict=True):
        few, whole = _seen(one), _seen(other)
        pairs = list(zip(few.tokens, whole.tokens, strict=False))
        count = next((place + 1 for place, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))
        p, q = (functional.log_softmax(seen.logits[:count], dim=-1) for seen in (whole, few))
        kls.append((p.exp() * (p - q)).nan_to_num().sum(-1))
        same += [mine == theirs for mine, theirs in pairs[:count]]
    together = torch.cat(kls)
    return Distance(float(together.mean()), float(together.max()), sum(same) / len(same), len(same))


def _seen(one: Answer) -> Seen:
    assert one.seen is not None
    return one.seen


def peek_requests(screens: Sequence[Screen]) -> tuple[list[Asked], list[GenerateRequest]]:
    """Every question of the evaluation, and as the engine is asked it."""
    asked = [Asked(screen, question) for screen in screens for question in evaluation_questions(screen)]
    requests = []
    for one in asked:
        drawn = one.screen.image
        picture = Image.of(drawn.convert("RGB").tobytes(), drawn.width, drawn.height)
        sampling = Sampling(max_tokens=LONGEST.get(one.question.task, 40), temperature=0.0)
        requests.append(GenerateRequest((Message("user", (picture, Text(one.question.text))),), sampling))
    return asked, requests


def tiny_requests() -> list[GenerateRequest]:
    """A few about shapes, and one without a picture."""
    colours = ((200, 0, 0), (0, 0, 220), (0, 150, 0), (90, 90, 0))
    pictures = [asking(turn(draw(colour), "What colour?"), max_tokens=16) for colour in colours]
    return [*pictures, asking(turn("Say what you see. " * 6), max_tokens=16)]


async def ask_about_screens(count: int, minutes: float) -> tuple[list[Asked], dict[QuantizeChoice, list[Answer]]]:
    """Peek's evaluation by every choice, up to `count` screens, no lot begun after `minutes`."""
    asked: list[Asked] = []
    answers: dict[QuantizeChoice, list[Answer]] = {choice: [] for choice in CHOICES}
    began_s = time.perf_counter()
    for first in range(0, count, _LOT):
        numbers = range(first, min(first + _LOT, count))
        if first and (time.perf_counter() - began_s) * (1 + len(numbers) / first) > minutes * 60:
            print(f"the time would be over: {first} of {count} screens were looked at", flush=True)
            break
        screens = [draw_screen(FIRST_SEED + number, EVALUATION_STYLE) for number in numbers]
        asked += peek_requests(screens)[0]
        for choice in CHOICES:
            answers[choice] += await ask(BUNDLED, choice, peek_requests(screens)[1])
        print(f"{numbers.stop} of {count} screens after {time.perf_counter() - began_s:.0f} s", flush=True)
    return asked, answers


async def measure(count: int, minutes: float = 8.0) -> list[str]:
    """The lines of the page's tables."""
    distances: dict[tuple[str, Scheme], Distance] = {}
    by_layer = {"Peek": await layer_errors(BUNDLED)}
    with tempfile.TemporaryDirectory() as temporary:
        for name, kind in FAMILIES.items():
            folder = kind.write(Path(temporary) / name)
            made = {choice: await ask(folder, choice, tiny_requests()) for choice in CHOICES}
            by_layer[f"tiny {kind.title}"] = await layer_errors(folder)
            for scheme in SCHEMES:
                distances[f"tiny {kind.title}", scheme] = distance(made[scheme], made["none"])
            print(f"tiny {kind.title}: done", flush=True)
    asked, answers = await ask_about_screens(count, minutes)
    distances = {("Peek", scheme): distance(answers[scheme], answers["none"]) for scheme in SCHEMES} | distances
    scores = {
        choice: score(
            [Asked(one.screen, one.question, made.text.strip()) for one, made in zip(asked, some, strict=True)]
        )
        for choice, some in answers.items()
    }
    errors = {scheme: weight_errors(BUNDLED, scheme) for scheme in SCHEMES}
    return [
        aims_table([loss(scores["none"], scores["int4"])]),
        "",
        *evaluation_table(scores),
        "",
        *distance_table(distances),
        "",
        *layer_table(by_layer),
        "",
        *error_table(errors),
    ]


def loss(whole: Mapping[str, tuple[int, int]], few: Mapping[str, tuple[int, int]]) -> Aim:
    """What int4 costs in the row of the evaluation that loses most."""
    lost = {
        meaning: round(100 * (whole[row][0] / whole[row][1] - few[row][0] / few[row][1]), 6)
        for row, meaning in ROWS
        if whole.get(row, (0, 0))[1]
    }
    worst = max(lost, key=lambda meaning: lost[meaning])
    return Aim(f"points of Peek's evaluation that int4 loses, the worst row ({worst})", MOST_LOST, lost[worst], "")


def evaluation_table(scores: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    """Right answers in percent, by row of the evaluation."""
    lines = [f"## Peek's evaluation, right in %\n\n| what | float32 | int8 | int4 | asked |\n|{' --- |' * 5}"]
    for row, meaning in ROWS:
        shares = [scores[choice].get(row, (0, 0)) for choice in CHOICES]
        if shares[0][1]:
            cells = " | ".join(f"{100 * right / total:.1f}" for right, total in shares)
            lines.append(f"| {meaning} | {cells} | {shares[0][1]} |")
    return lines


def distance_table(distances: Mapping[tuple[str, Scheme], Distance]) -> list[str]:
    """KL and agreement, a row a model."""
    lines = [
        "## Logits, beside float32's\n\n| model | bits | mean KL, nats | largest KL, nats | same likeliest token, %"
        f" | places |\n|{' --- |' * 6}"
    ]
    for (name, scheme), one in distances.items():
        lines.append(
            f"| {name} | {scheme} | {one.mean:.1e} | {one.largest:.1e} | {100 * one.same:.1f} | {one.places} |"
        )
    return lines


def layer_table(errors: Mapping[str, Sequence[Mapping[Scheme, float]]]) -> list[str]:
    """The errors of every layer's outputs, those of the layers before it among them."""
    lines = [
        "## Layers' outputs: errors, beside the outputs' own size, in %\n\n| model | layer | int8 | int4 |"
        f"\n|{' --- |' * 4}"
    ]
    for name, layers in errors.items():
        for place, one in enumerate(layers):
            lines.append(f"| {name} | {place} | {100 * one['int8']:.2f} | {100 * one['int4']:.2f} |")
    return lines


def error_table(errors: Mapping[Scheme, Mapping[str, float]]) -> list[str]:
    """The rounding errors of each of Peek's products."""
    lines = [
        f"## Peek's weights: errors, beside the weights' own size, in %\n\n| product | int8 | int4 |\n|{' --- |' * 3}"
    ]
    for name in errors["int4"]:
        lines.append(f"| {name} | {100 * errors['int8'][name]:.2f} | {100 * errors['int4'][name]:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=8.0, help="screens are left out that would take longer")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    lines = asyncio.run(measure(arguments.screens, arguments.minutes))
    page = f"""# 4 and 8 bits: what they cost in answers

Written by `python -m benchmarks.few_bits --screens {arguments.screens}`; do not edit. Everything ran through the engine
on a CPU with float32 activations, greedily: `--quantize none`, `int8` and `int4`. The evaluation is that of
docs/results/peek.md. Logits are compared at every place of an answer up to the first token that differs from
float32's. The tiny models are random, so that their likeliest tokens are hardly likelier than others: they show errors
at their largest. The output head has 8 bits in both columns. A layer's outputs are those to a prompt with a picture,
the layers before it being in few bits too. No screens are begun that would end after {arguments.minutes:g} minutes.

{chr(10).join(lines)}

commit {commit()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}
"""
    arguments.out.write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
