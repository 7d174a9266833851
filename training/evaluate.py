"""Measure Peek on screens it has never seen, and again with the pictures shuffled, where it must fall to chance.

python -m training.evaluate --screens 500 --out docs/results/peek.md
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.dense import normalise
from training.draw import EVALUATION_STYLE, Screen, draw_screen, to_square
from training.model import BUNDLED, load_model, load_tokenizer
from training.questions import KIND_NAMES, Question, ask_box, ask_colour, ask_count, ask_describe, ask_read, ask_where
from training.sequences import turn
from training.words import HELD_OUT_WORDS, KNOWN_WORDS

FIRST_SEED = 7_000_000
"""Evaluation's seeds: training draws only above training.dense.TRAINING_SEEDS."""

LONGEST = {"read": 130, "describe": 220}
"""Most tokens of an answer, by task; 40 for the others."""

ROWS: tuple[tuple[str, str], ...] = (
    ("point", "where is X: the point lies inside X's box"),
    ("colour", "what colour is X: exact"),
    ("box", "what is in this box: kind and colour right"),
    ("box kind", "what is in this box: kind right"),
    ("box colour", "what is in this box: colour right"),
    ("box text", "what is in this box: text exact (all words)"),
    ("box all", "what is in this box: kind, colour and text exact"),
    ("known read", "read the screen: share of known words read exactly"),
    ("other read", "read the screen: share of held-out and made-up words read exactly"),
    ("dark", "describe the screen: dark or light right"),
    ("described", "describe the screen: number of widgets right"),
    ("count", "how many widgets: right"),
)


@dataclass(frozen=True)
class Asked:
    """A question to the model: which screen it is truly about, the question, and the model's answer."""

    screen: Screen
    question: Question
    answer: str = ""


def evaluation_questions(screen: Screen) -> list[Question]:
    """One question of every task, phrasings and widgets drawn by the screen's own seed."""
    rng = random.Random(screen.seed)
    pick = [rng.randrange(len(screen.widgets)) for _ in range(3)]
    return [
        ask_where(screen, pick[0], rng),
        ask_box(screen, pick[1], rng),
        ask_colour(screen, pick[2], rng),
        ask_read(screen, rng),
        ask_describe(screen, rng),
        ask_count(screen, rng),
    ]


@torch.inference_mode()
def answer_all(
    model: SmolVLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    pictures: Tensor,
    questions: list[Question],
    batch: int = 50,
) -> list[str]:
    """Greedy answers, each question the first of its conversation; ``pictures`` (N, 3, 256, 256) uint8."""
    answers = [""] * len(questions)
    order = sorted(range(len(questions)), key=lambda i: (questions[i].task, len(questions[i].text)))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        prompts = [turn(questions[i].text, True) for i in chosen]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        limit = max(LONGEST.get(questions[i].task, 40) for i in chosen)
        pixels = normalise(pictures[chosen]).unsqueeze(1).to(model.device)
        inputs = inputs.to(model.device)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=pixels,
            max_new_tokens=limit,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.strip()
    return answers


def score(asked: list[Asked]) -> dict[str, tuple[int, int]]:
    """(right, asked) of every row of ROWS."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def note(row: str, right: bool) -> None:
        counts[row][0] += right
        counts[row][1] += 1

    for item in asked:
        for row, right in judge(item):
            note(row, right)
    return {row: (right, total) for row, (right, total) in counts.items()}


def judge(item: Asked) -> list[tuple[str, bool]]:
    """What one answer adds to the table, as (row, right) pairs."""
    task, answer, screen = item.question.task, item.answer, item.screen
    widget = screen.widgets[item.question.widget] if item.question.widget is not None else None
    if task == "where" and widget is not None:
        return [("point", _point_inside(answer, screen, widget.box))]
    if task == "colour" and widget is not None:
        return [("colour", answer.rstrip(".").lower() == widget.colour)]
    if task == "box" and widget is not None:
        kind, colour = KIND_NAMES[widget.kind], widget.colour
        found = re.match(r'an? (\w+) (.+?) "(.*)"$', answer)
        right = [bool(found) and found[n] == wanted for n, wanted in ((2, kind), (1, colour), (3, widget.text))]
        rows = list(zip(("box kind", "box colour", "box text"), right, strict=True))
        return [*rows, ("box", right[0] and right[1]), ("box all", all(right))]
    if task == "read":
        lines = {line.strip() for line in answer.splitlines()}
        return [("known read" if w.text in KNOWN_WORDS else "other read", w.text in lines) for w in screen.widgets]
    if task == "describe":
        shade, number = "dark" if screen.dark else "light", f"with {len(screen.widgets)} widgets"
        return [("dark", f" {shade} screen" in answer), ("described", number in answer)]
    return [("count", answer == item.question.answer)]


def _point_inside(answer: str, screen: Screen, box: tuple[int, int, int, int]) -> bool:
    found = re.fullmatch(r"\((\d+), (\d+)\)", answer)
    if not found:
        return False
    x, y = int(found[1]) / 1000 * screen.image.width, int(found[2]) / 1000 * screen.image.height
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def run(
    model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, screens: list[Screen], shift: int
) -> list[Asked]:
    """Ask everything about ``screens``; with ``shift``, each question sees the picture of another screen."""
    squares = [torch.from_numpy(np.asarray(to_square(s.image)).transpose(2, 0, 1).copy()) for s in screens]
    questions = [(n, question) for n, screen in enumerate(screens) for question in evaluation_questions(screen)]
    pictures = torch.stack([squares[(n + shift) % len(screens)] for n, _ in questions])
    answers = answer_all(model, tokenizer, pictures, [question for _, question in questions])
    return [Asked(screens[n], q, answer) for (n, q), answer in zip(questions, answers, strict=True)]


def table(true: dict[str, tuple[int, int]], shuffled: dict[str, tuple[int, int]]) -> str:
    """The Markdown table of both runs."""
    lines = ["| what | right | pictures shuffled | asked |", "| --- | ---: | ---: | ---: |"]
    for row, meaning in ROWS:
        right, total = true.get(row, (0, 0))
        other, others = shuffled.get(row, (0, 0))
        lines.append(f"| {meaning} | {_share(right, total)} | {_share(other, others)} | {total} |")
    return "\n".join(lines)


def _share(right: int, total: int) -> str:
    return f"{100 * right / total:.1f} %" if total else "-"


def report(arguments: argparse.Namespace, body: str, examples: list[Asked]) -> str:
    """The whole Markdown page."""
    digest = hashlib.sha256((arguments.model / "model.safetensors").read_bytes()).hexdigest()
    shown = "\n".join(
        f"- {item.question.text!r} -> {item.answer!r} (true: {item.question.answer!r})" for item in examples
    )
    return f"""# Peek, measured

{arguments.screens} screens drawn for this alone (seeds from {FIRST_SEED}; training draws others), Pillow's built-in
font, odd sizes (long side 233 to 997 pixels), a tenth of the words from {len(HELD_OUT_WORDS)} that training never draws
and a tenth made up. Every question is the first of its conversation; greedy decoding, stored bfloat16 weights computed
in float32. "Pictures shuffled" asks the same about another screen's picture: what is left there is chance.

{body}

- weights: sha256 `{digest}`
- trained: {arguments.trained or "not recorded"}
- command: `python -m training.evaluate --screens {arguments.screens} --out docs/results/peek.md`

Some answers of this run, unpicked:

{shown}
"""


def main() -> None:
    """Run the evaluation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--screens", type=int, default=500)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--trained", default="", help="one line on how the weights were trained, for the page")
    parser.add_argument("--no-shuffled", action="store_true", help="leave the shuffled run out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    tokenizer, model = load_tokenizer(arguments.model), load_model(arguments.model).to(arguments.device).eval()
    screens = [draw_screen(FIRST_SEED + n, EVALUATION_STYLE) for n in range(arguments.screens)]
    asked = run(model, tokenizer, screens, 0)
    shuffled = {} if arguments.no_shuffled else score(run(model, tokenizer, screens, 1))
    body = table(score(asked), shuffled)
    page = report(arguments, body, asked[:12])
    print(page)
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
