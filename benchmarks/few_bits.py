"""What 4 and 8 bits cost in answers: errors by layer, KL of the logits, and Peek's own evaluation, beside float32.

python -m benchmarks.few_bits [--screens N] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.report import commit
from onsight.core.generation import GenerateRequest, Sampling
from onsight.core.messages import Image, Message, Text
from onsight.engines.torch_engine import TorchSettings
from onsight.engines.torch_engine.families import load_family
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
_SLOTS = 16


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


async def measure(count: int) -> list[str]:
    """The lines of the page's tables."""
    screens = [draw_screen(FIRST_SEED + number, EVALUATION_STYLE) for number in range(count)]
    asked, _ = peek_requests(screens)
    answers = {choice: await ask(BUNDLED, choice, peek_requests(screens)[1]) for choice in CHOICES}
    distances = {("Peek", scheme): distance(answers[scheme], answers["none"]) for scheme in SCHEMES}
    with tempfile.TemporaryDirectory() as temporary:
        for name, kind in FAMILIES.items():
            folder = kind.write(Path(temporary) / name)
            made = {choice: await ask(folder, choice, tiny_requests()) for choice in CHOICES}
            for scheme in SCHEMES:
                distances[f"tiny {kind.title}", scheme] = distance(made[scheme], made["none"])
    scores = {
        choice: score(
            [Asked(one.screen, one.question, made.text.strip()) for one, made in zip(asked, some, strict=True)]
        )
        for choice, some in answers.items()
    }
    errors = {scheme: weight_errors(BUNDLED, scheme) for scheme in SCHEMES}
    return [*evaluation_table(scores), "", *distance_table(distances), "", *error_table(errors)]


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
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    lines = asyncio.run(measure(arguments.screens))
    page = f"""# 4 and 8 bits: what they cost in answers

Written by `python -m benchmarks.few_bits --screens {arguments.screens}`; do not edit. Everything ran through the engine
on a CPU with float32 activations, greedily: `--quantize none`, `int8` and `int4`. The evaluation is that of
docs/results/peek.md. Logits are compared at every place of an answer up to the first token that differs from
float32's. The tiny models are random, so that their likeliest tokens are hardly likelier than others: they show errors
at their largest. The output head has 8 bits in both columns.

{chr(10).join(lines)}

commit {commit()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}
"""
    arguments.out.write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
