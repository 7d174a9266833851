"""Stage 2: teach the whole model to answer, several questions about one screen in one conversation.

The dense labels of stage 1 stay as a further term of the loss, so that the tower goes on learning to read.

    python -m training.sequences --out RUN2 --warm RUN --minutes 40
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import SmolVLMForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.dense import TRAINING_SEEDS, DenseHeads, Namer, dense_example, dense_loss, see
from training.draw import COLOURS, KINDS, Screen, Style, Widget, draw_screen
from training.loop import Schedule, add_loop_arguments, load_checkpoint, run_loop
from training.model import BUNDLED, GRID, IMAGE_TOKENS, align_words, load_tokenizer, new_model, warm_start
from training.questions import KIND_NAMES, Question, ask_questions, per_mille
from training.tokenizer import END, FAKE, GLOBAL, IMAGE, START

PICTURE = FAKE + GLOBAL + IMAGE * IMAGE_TOKENS + FAKE
TASK_WEIGHTS = {"colour": 5.0, "where": 2.0, "describe": 0.3, "listing": 0.3, "count": 3.0}
"""Weight of an answer's tokens in the loss by task, where it is not 1: a colour is one token among a hundred."""
POINT_TASKS = ("where", "listing")
SHADE_WEIGHT = 200.0
"""Weight of "dark" or "light" in a description, beside TASK_WEIGHTS: one token among two hundred."""
BY_NAME, BY_PLACE = 0, 2
"""The first of two heads of the second layer that find a widget by its name, or by its box."""
LOOK_FACTS = 6
"""Whole numbers that a look tells of its widget: kind, colour, the four digits of its middle (as dense labels do)."""
LOOK_SIZE = 4 + LOOK_FACTS + IMAGE_TOKENS
LENGTH_STEP = 32
LOOK_PLACES = 5
"""Places of an answer that are shown where to look back to."""


class Writer:
    """Turns questions about one screen into token ids with labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids(IMAGE)

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text``, special tokens recognised, none added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def conversation(
        self, screen: Screen, questions: Sequence[Question], rng: random.Random
    ) -> tuple[list[int], list[float], list[list[int]]]:
        """(token ids, weight in the loss of each token as a target, looks); only answers and their ends have a weight.

        A look is, for a question about one widget: the place of the token that says which; the places where the
        answer's guesses begin and end; the first of the heads that should look (BY_NAME or BY_PLACE); the widget's
        LOOK_FACTS; and one flag for each image token, 1 where the widget's text stands.
        """
        ids: list[int] = []
        weights: list[float] = []
        looks: list[list[int]] = []
        for number, question in enumerate(questions):
            ids += (prompt := self.ids(turn(question.text, number == 0, rng.random() < 0.85)))
            weights += [0.0] * len(prompt)
            start = len(ids)
            ids += (answer := self.ids(f" {question.answer}{END}"))
            weights += self.answer_weights(question.task, answer)
            ids += (gap := self.ids("\n"))
            weights += [0.0] * len(gap)
            if question.widget is not None:
                looks += self.look(screen, question, prompt, range(start, start + len(answer)))
        return ids, weights, looks

    def look(self, screen: Screen, question: Question, prompt: list[int], answer: range) -> list[list[int]]:
        """The look of a question, or none; ``prompt`` ends where the places of the ``answer`` begin."""
        assert question.widget is not None
        named = self.place_of(screen.widgets[question.widget], question.task, prompt)
        if named is None:
            return []
        heads = BY_PLACE if question.task == "box" else BY_NAME
        told = [*facts_of(screen, question.widget), *text_tokens(screen, question.widget)]
        return [[answer.start - len(prompt) + named, answer.start - 1, answer.stop - 2, heads, *told]]

    def place_of(self, widget: Widget, task: str, prompt: list[int]) -> int | None:
        """Where in ``prompt`` the token stands that says which widget is meant; None where that is before the picture.

        The end of its box; else the first token of its text; else, where its kind names it, the last token of that.
        """
        picture = max((place for place, token in enumerate(prompt) if token == self.image), default=-1) + 1
        if task == "box":
            return max((place for place in range(picture, len(prompt)) if self.has_digit(prompt[place])), default=None)
        for text in (widget.text, widget.text.lower()):
            for wanted in (self.ids(f" {text}"), self.ids(text)):
                for place in range(picture, len(prompt) - len(wanted) + 1):
                    if prompt[place : place + len(wanted)] == wanted:
                        return place
        kind = self.ids(f" {KIND_NAMES[widget.kind]}")[-1]
        return max((place for place in range(picture, len(prompt)) if prompt[place] == kind), default=None)

    def has_digit(self, token: int) -> bool:
        """Whether ``token`` writes a digit."""
        return self.tokenizer.convert_ids_to_tokens(token)[-1].isdigit()

    def answer_weights(self, task: str, answer: list[int]) -> list[float]:
        """Weights of an answer's tokens: little for the last digits of coordinates, which are noise."""
        tokens = self.tokenizer.convert_ids_to_tokens(answer)
        weights = [TASK_WEIGHTS.get(task, 1.0)] * len(answer)
        for spot, (before, token, after) in enumerate(zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False)):
            if task in POINT_TASKS and before.isdigit() and token.isdigit() and not after.isdigit():
                weights[spot] *= 0.1
        if task == "describe":
            weights[1] *= SHADE_WEIGHT
        return weights


def facts_of(screen: Screen, index: int) -> list[int]:
    """The LOOK_FACTS of a widget: the places of its kind and colour in their lists, hundreds and tens of its middle."""
    widget = screen.widgets[index]
    x, y = per_mille(screen, *widget.centre)
    digits = [x // 100 % 10, x // 10 % 10, y // 100 % 10, y // 10 % 10]
    return [KINDS.index(widget.kind), list(COLOURS).index(widget.colour), *digits]


def text_tokens(screen: Screen, index: int) -> list[int]:
    """A flag for each image token, row by row: 1 where the middle line of the widget's text runs through it."""
    run, side = screen.runs[index], GRID // 2
    row = min(int((run.top + run.bottom) / 2 / screen.image.height * side), side - 1)
    first, last = (min(int(x / screen.image.width * side), side - 1) for x in (run.edges[0], run.edges[-1] - 1))
    return [int(place // side == row and first <= place % side <= last) for place in range(side * side)]


def turn(text: str, first: bool, picture_first: bool = True) -> str:
    """A user's turn and the start of the answer, as the chat template writes it; the first turn has the picture."""
    if not first:
        body = f"User: {text}"
    elif picture_first:
        body = f"{START}User:{PICTURE}{text}"
    else:
        body = f"{START}User: {text}{PICTURE}"
    return f"{body}{END}\nAssistant:"


class Conversations(IterableDataset):
    """Endless screens: what DenseScreens gives, and token ids with weights.

    Of every four batches' screens those of like length stand together, so that little is padded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first_seed: int, style: Style, questions: int, batch: int):
        self.tokenizer, self.first_seed, self.style, self.questions = tokenizer, first_seed, style, questions
        self.batch = batch

    def __iter__(self):
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        seed = 2 * TRAINING_SEEDS + self.first_seed + start
        name, writer = Namer(self.tokenizer), Writer(self.tokenizer)
        while True:
            examples = [self._example(seed + n * step, name, writer) for n in range(4 * self.batch)]
            examples.sort(key=lambda example: len(example["ids"]))
            starts = list(range(0, len(examples), self.batch))
            for first in random.Random(seed).sample(starts, len(starts)):
                yield from examples[first : first + self.batch]
            seed += step * len(examples)

    def _example(self, seed: int, name: Namer, writer: Writer) -> dict[str, Tensor]:
        screen = draw_screen(seed, self.style)
        rng = random.Random(-seed)
        asked = ask_questions(screen, rng, rng.randint(self.questions - 2, self.questions + 2))
        ids, weights, looks = writer.conversation(screen, asked, rng)
        told = torch.tensor(looks, dtype=torch.long).reshape(len(looks), LOOK_SIZE)
        return dense_example(screen, name) | {"ids": torch.tensor(ids), "weights": torch.tensor(weights), "looks": told}


def collate(examples: list[dict[str, Tensor]], pad: int, conversations: int) -> dict[str, Tensor]:
    """Stack pictures and dense labels; pad the token ids of the first ``conversations`` screens on the right."""
    batch = {
        key: torch.stack([e[key] for e in examples]) for key in examples[0] if key not in ("ids", "weights", "looks")
    }
    chosen = examples[:conversations]
    # Lengths in steps: a heap that meets every length there is, breaks into pieces and grows without end.
    length = -(-max(len(e["ids"]) for e in chosen) // LENGTH_STEP) * LENGTH_STEP
    batch["ids"] = torch.stack([functional.pad(e["ids"], (0, length - len(e["ids"])), value=pad) for e in chosen])
    batch["weights"] = torch.stack([functional.pad(e["weights"], (0, length - len(e["weights"]))) for e in chosen])
    batch["looks"] = torch.cat([functional.pad(e["looks"], (1, 0), value=n) for n, e in enumerate(chosen)])
    return batch


def answer_loss(
    model: SmolVLMForConditionalGeneration, facts: FactHeads, tokens: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over the answers' tokens with that of the looks, and the shares of guesses that are right.

    ``tokens`` (B, IMAGE_TOKENS, width) are the pictures' tokens; ``batch["ids"]`` (B, L), ``batch["weights"]`` (B, L).
    """
    ids, weights = batch["ids"], batch["weights"]
    embeddings = model.get_input_embeddings()(ids)
    spots = (ids == model.config.image_token_id).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(spots, tokens.to(embeddings.dtype))
    # Padding stands on the right and has no weight, so the causal mask alone will do.
    output = model.model.text_model(
        inputs_embeds=embeddings, use_cache=False, output_attentions=True, output_hidden_states=True
    )
    hidden = output.last_hidden_state
    asked = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][asked]).float()
    wanted, weight = ids[:, 1:][asked], weights[:, 1:][asked]
    loss = (functional.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == wanted).float()
    look, looked = look_loss(output.attentions, spots[..., 0], batch["looks"])
    # What the second layer's look has fetched stands in its output, at the token that looked.
    screens, places = batch["looks"][:, 0], batch["looks"][:, 1]
    fact, told = facts.loss(output.hidden_states[2][screens, places], batch["looks"][:, 5 : 5 + LOOK_FACTS])
    return loss + look + fact, {"answer": loss.detach(), "tokens_right": right.mean(), **looked, **told}


class FactHeads(nn.Module):
    """Linear heads on the token that names a widget, after the layer that looks; not part of the stored model."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = (len(KINDS), len(COLOURS), 10, 10, 10, 10)
        self.read = nn.Linear(width, sum(self.sizes))

    def loss(self, hidden: Tensor, facts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, shares right) of ``hidden`` (N, width) for the ``facts`` (N, LOOK_FACTS)."""
        parts = self.read(hidden).float().split(self.sizes, -1)
        losses = [functional.cross_entropy(part, wanted) for part, wanted in zip(parts, facts.T, strict=True)]
        right = torch.stack([(part.argmax(-1) == w).float().mean() for part, w in zip(parts, facts.T, strict=True)])
        names = ("kind_known", "colour_known", "hundreds_known", "tens_known")
        shares = (right[0], right[1], right[2::2].mean(), right[3::2].mean())
        return torch.stack(losses).mean(), dict(zip(names, shares, strict=True))


def look_loss(attentions: tuple[Tensor, ...], pictures: Tensor, looks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Shows the text model where to look for a widget that a question names; (loss, shares of attention that do).

    In the second layer, two heads at the token that says which widget (BY_NAME or BY_PLACE) should look at the image
    tokens with its text; in the third, two heads at the answer's tokens should look at the token that said it.
    ``attentions`` are (B, heads, L, L) a layer, ``pictures`` (B, L) says which tokens are image tokens, ``looks``
    (N, 1 + LOOK_SIZE) as collate gives them.
    """
    screens, places, first, last, heads = looks[:, :5].T
    starts = pictures.int().argmax(1)[screens]
    spans = starts[:, None] + torch.arange(IMAGE_TOKENS, device=looks.device)
    flags, shares = looks[:, 5 + LOOK_FACTS :], {}
    seen = [attentions[1][screens, heads + n, places].float().gather(1, spans) for n in (0, 1)]
    found = torch.stack([(attention * flags).sum(-1) for attention in seen]).clamp(min=1e-6)
    for name, group in (("found", BY_NAME), ("found_box", BY_PLACE)):
        shares[name] = found[:, heads == group].detach().mean()
    steps = torch.arange(LOOK_PLACES, device=looks.device)
    answers = first[:, None] + (last - first)[:, None] * steps // (LOOK_PLACES - 1)
    back = attentions[2][screens[:, None], :2, answers, :].float()
    back = back.gather(3, places[:, None, None, None].expand(-1, LOOK_PLACES, 2, 1)).clamp(min=1e-6)
    return -found.log().mean() - back.log().mean(), shares | {"back": back.detach().mean()}


def main() -> None:
    """Run stage 2 from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, batch=24, rate=1e-3)
    parser.add_argument("--conversations", type=int, default=16, help="screens of a step that are asked about")
    parser.add_argument("--questions", type=int, default=6, help="short questions a screen, two more or fewer")
    parser.add_argument("--made-up", type=float, default=0.3, help="share of widgets with a made-up word")
    parser.add_argument("--tower", type=float, default=0.5, help="factor on the tower's and connector's rate")
    parser.add_argument("--dense", type=float, default=0.3, help="weight of the dense loss")
    parser.add_argument("--follow", help="a stage 1 run that goes on beside this one and alone trains the tower")
    parser.add_argument("--tower-from", help="a stage 1 run whose tower to start from, whatever --warm holds")
    parser.add_argument("--align-words", action="store_true", help="after stage 1: see training.model.align_words")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(BUNDLED)
    model = new_model(tokenizer)
    heads, facts = DenseHeads(model.config.vision_config.hidden_size), FactHeads(model.config.text_config.hidden_size)
    _start_from(arguments, {"model": model, "heads": heads, "facts": facts})
    tower = list(model.model.vision_model.parameters())
    groups = [
        (list(model.model.connector.parameters()), arguments.tower),
        ([*model.model.text_model.parameters(), *facts.parameters()], 1.0),
    ]
    follower = Follower(Path(arguments.follow), model, heads) if arguments.follow else None
    if follower is None:
        groups += [(tower, arguments.tower), (list(heads.parameters()), 1.0)]

    def batches(first_seed: int) -> DataLoader:
        data = Conversations(
            tokenizer, first_seed, Style(made_up=arguments.made_up), arguments.questions, arguments.batch
        )
        together = partial(collate, pad=tokenizer.pad_token_id, conversations=arguments.conversations)
        return DataLoader(data, arguments.batch, num_workers=arguments.workers, prefetch_factor=4, collate_fn=together)

    def step(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if follower is not None:
            follower.look()
        with torch.set_grad_enabled(follower is None):
            patches = see(model, batch["pixels"])
        dense, shares = dense_loss(model, heads, patches, batch)
        tokens = model.model.connector(patches[: len(batch["ids"])])
        answers, right = answer_loss(model, facts, tokens, batch)
        return answers + arguments.dense * dense, shares | right

    schedule = Schedule(arguments.rate, arguments.warmup, arguments.minutes, arguments.decay)
    run_loop(arguments, {"model": model, "heads": heads, "facts": facts}, groups, batches, step, schedule)


class Follower:
    """Keeps the tower (and the heads) as a stage 1 run that goes on beside this one last stored them."""

    def __init__(self, run: Path, model: SmolVLMForConditionalGeneration, heads: DenseHeads):
        self.path, self.model, self.heads, self.seen = run / "checkpoint.pt", model, heads, 0.0
        model.model.vision_model.requires_grad_(False)
        heads.requires_grad_(False)

    def look(self) -> None:
        """Take over a newer checkpoint, if there is one."""
        changed = self.path.stat().st_mtime if self.path.exists() else 0.0
        if changed > self.seen:
            take_tower(self.path.parent, self.model, self.heads)
            self.seen = changed


def take_tower(run: Path, model: SmolVLMForConditionalGeneration, heads: DenseHeads) -> None:
    """Load the tower and the heads alone from the checkpoint of ``run``."""
    content = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    prefix = "model.vision_model."
    tower = {key.removeprefix(prefix): v for key, v in content["model"].items() if key.startswith(prefix)}
    model.model.vision_model.load_state_dict(tower)
    heads.load_state_dict(content["heads"])


def _start_from(arguments: argparse.Namespace, modules: dict[str, nn.Module]) -> None:
    model, heads = modules["model"], modules["heads"]
    if arguments.warm and (Path(arguments.warm) / "checkpoint.pt").exists():
        load_checkpoint(Path(arguments.warm), modules)
    elif arguments.warm:
        warm_start(model, Path(arguments.warm))
    if arguments.align_words:
        align_words(model, load_tokenizer(BUNDLED))
    if arguments.tower_from:
        take_tower(Path(arguments.tower_from), model, heads)


if __name__ == "__main__":
    main()
