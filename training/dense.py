"""Stage 1: teach the vision tower with labels for every patch, before any sentence.

Every patch of 16x16 pixels has to say which widget it lies in (kind, colour, distances to its edges, the digits of
its middle) and which characters stand there; every image token (2x2 patches, after the connector) has to name the
words, colours and kinds it covers in the text model's own token embeddings, so that stage 2 finds them there, and to
tell the digits of their widgets' middles.

    python -m training.dense --out RUN --minutes 30
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import SmolVLMForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.draw import COLOURS, IMAGE_SIDE, KINDS, Screen, Style, draw_screen, to_square
from training.loop import Schedule, add_loop_arguments, load_checkpoint, run_loop
from training.model import BUNDLED, GRID, PATCH, load_tokenizer, new_model, warm_start
from training.questions import KIND_NAMES, per_mille

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SLOTS = 4
"""Horizontal slots of 4 pixels in a patch, each with the character whose middle lies there."""
TRAINING_SEEDS = 1 << 24
"""Training draws seeds from here on; evaluation stays below."""
IGNORED = -100


@dataclass(frozen=True)
class DenseLabels:
    """Labels of one screen on the GRID x GRID patches (row by row), 0 meaning none for kind, colour and characters.

    ``kind``, ``colour`` (P,); ``edges`` (P, 8) fractions of the square: distances from the patch's middle to the left,
    top, right and bottom edge, then those edges' places; ``digits`` (P, 4): hundreds and tens of the middle's x, of
    its y, IGNORED outside widgets; ``characters`` (P, SLOTS); ``names`` (P, 3): token ids of word (where
    it has several, of the one that writes what stands there), colour and kind.
    """

    kind: np.ndarray
    colour: np.ndarray
    edges: np.ndarray
    digits: np.ndarray
    characters: np.ndarray
    names: np.ndarray


class Namer:
    """Token ids of words, colours and kinds, as they are written after a space."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """The first token's id of " text"."""
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(f" {text}", add_special_tokens=False)[0]
        return self._known[text]

    def pieces(self, word: str) -> list[int]:
        """For each character of ``word``, the id of the token that writes it. Words are ASCII."""
        ids = self._tokenizer.encode(f" {word}", add_special_tokens=False)
        lengths = [len(token) for token in self._tokenizer.convert_ids_to_tokens(ids)]
        return [piece for piece, length in zip(ids, lengths, strict=True) for _ in range(length)][1:]


def dense_labels(screen: Screen, name: Namer) -> DenseLabels:
    """The labels of ``screen`` (see DenseLabels)."""
    width, height = screen.image.size
    across, down = IMAGE_SIDE / width, IMAGE_SIDE / height
    kind, colour = np.zeros((GRID, GRID), np.int64), np.zeros((GRID, GRID), np.int64)
    edges = np.zeros((GRID, GRID, 8), np.float32)
    digits = np.full((GRID, GRID, 4), IGNORED, np.int64)
    characters = np.zeros((GRID, GRID, SLOTS), np.int64)
    names = np.full((GRID, GRID, 3), IGNORED, np.int64)
    middles = (np.arange(GRID, dtype=np.float32) + 0.5) * PATCH / IMAGE_SIDE
    for widget, run in zip(screen.widgets, screen.runs, strict=True):
        box = np.array(widget.box, np.float32) / (width, height, width, height)
        # A patch is the widget's where its middle lies inside, or within a quarter of a patch of it.
        near = 0.25 / GRID
        rows = np.nonzero((middles >= box[1] - near) & (middles < box[3] + near))[0]
        columns = np.nonzero((middles >= box[0] - near) & (middles < box[2] + near))[0]
        area = np.ix_(rows, columns)
        kind[area], colour[area] = 1 + KINDS.index(widget.kind), 1 + list(COLOURS).index(widget.colour)
        x, y = per_mille(screen, *widget.centre)
        digits[area] = (x // 100 % 10, x // 10 % 10, y // 100 % 10, y // 10 % 10)
        edges[area] = np.concatenate(
            [
                np.stack(np.broadcast_arrays(middles[columns][None] - box[0], middles[rows][:, None] - box[1]), -1),
                np.stack(np.broadcast_arrays(box[2] - middles[columns][None], box[3] - middles[rows][:, None]), -1),
                np.broadcast_to(box, (len(rows), len(columns), 4)),
            ],
            -1,
        )
        names[(*area, 1)] = name(widget.colour)
        names[(*area, 2)] = name(KIND_NAMES[widget.kind])
        row = min(int((run.top + run.bottom) / 2 * down) // PATCH, GRID - 1)
        for character, left, right in zip(run.text, run.edges, run.edges[1:], strict=False):
            slot = min(int((left + right) / 2 * across) * SLOTS // PATCH, GRID * SLOTS - 1)
            characters[row, slot // SLOTS, slot % SLOTS] = 1 + CHARACTERS.index(character)
        for piece, left, right in zip(name.pieces(run.text), run.edges, run.edges[1:], strict=False):
            first, last = int(left * across) // PATCH, int(right * across - 1) // PATCH
            names[row, first : last + 1, 0] = piece
    shape = GRID * GRID
    return DenseLabels(
        kind.reshape(shape),
        colour.reshape(shape),
        edges.reshape(shape, 8),
        digits.reshape(shape, 4),
        characters.reshape(shape, SLOTS),
        names.reshape(shape, 3),
    )


class DenseScreens(IterableDataset):
    """Endless screens: dicts of the square picture (3, 256, 256) uint8 and its labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first_seed: int, style: Style):
        self.name, self.first_seed, self.style = Namer(tokenizer), first_seed, style

    def __iter__(self):
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        seed = TRAINING_SEEDS + self.first_seed + start
        while True:
            yield dense_example(draw_screen(seed, self.style), self.name)
            seed += step


def dense_example(screen: Screen, name: Namer) -> dict[str, Tensor]:
    """One screen's picture and labels as tensors."""
    picture = np.asarray(to_square(screen.image)).transpose(2, 0, 1).copy()
    labels = {key: torch.from_numpy(value) for key, value in vars(dense_labels(screen, name)).items()}
    return {"pixels": torch.from_numpy(picture), **labels}


class DenseHeads(nn.Module):
    """Linear heads on the tower's patches, and the naming of image tokens; not part of the stored model."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = (1 + len(KINDS), 1 + len(COLOURS), 8, 4 * 10, SLOTS * (1 + len(CHARACTERS)))
        self.patch = nn.Linear(width, sum(self.sizes))
        self.token = nn.Linear(width, 4 * 10)

    def losses(self, patches: Tensor, labels: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(losses, shares right) of ``patches`` (B, P, width), each a scalar by name."""
        kind, colour, edges, digits, characters = self.patch(patches).float().split(self.sizes, -1)
        inside = labels["kind"] > 0
        characters, wanted = characters.reshape(-1, 1 + len(CHARACTERS)), labels["characters"].reshape(-1)
        # Most slots are blank: keep those of text rows and a few others.
        text = (labels["characters"] > 0).any(-1, keepdim=True).expand_as(labels["characters"]).reshape(-1)
        kept = text | (torch.rand(wanted.shape, device=wanted.device) < 0.03)
        characters, wanted = characters[kept], wanted[kept]
        digits, wanted_digits = digits[inside].reshape(-1, 10), labels["digits"][inside].reshape(-1)
        losses = {
            "kind": functional.cross_entropy(kind.flatten(0, 1), labels["kind"].flatten()),
            "colour": functional.cross_entropy(colour.flatten(0, 1), labels["colour"].flatten()),
            "edges": (edges[inside] - labels["edges"][inside]).abs().mean() * 10,
            "digits": functional.cross_entropy(digits, wanted_digits),
            "characters": functional.cross_entropy(characters, wanted),
        }
        drawn = wanted > 0
        shares = {
            "kind": (kind.argmax(-1) == labels["kind"])[inside].float().mean(),
            "colour": (colour.argmax(-1) == labels["colour"])[inside].float().mean(),
            "pixels": (edges[inside] - labels["edges"][inside]).abs().mean() * IMAGE_SIDE,
            "digits": (digits.argmax(-1) == wanted_digits).float().mean(),
            "characters": (characters.argmax(-1) == wanted)[drawn].float().mean(),
        }
        return losses, shares

    def token_loss(self, tokens: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, share right) of the digits of middles that image ``tokens`` (B, T, width) tell."""
        wanted = of_tokens(labels["digits"])
        logits = functional.log_softmax(self.token(tokens).float().unflatten(-1, (4, 10)).flatten(0, 1), -1)
        loss, present = several(logits, wanted.transpose(1, 2))
        best = logits.argmax(-1, keepdim=True)
        return loss, (best == wanted.transpose(1, 2)).any(-1)[present].float().mean()


def of_tokens(labels: Tensor) -> Tensor:
    """(B, P, n) labels of patches -> (B * T, 4, n): those of the four patches of every image token."""
    side = GRID // 2
    return (
        labels.view(-1, side, 2, side, 2, labels.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, labels.shape[-1])
    )


def several(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, where there is one) for places that may have several right classes, each counting the same.

    ``logits`` (..., classes) are log probabilities, ``wanted`` (..., n) classes or IGNORED.
    """
    present = wanted != IGNORED
    weight = present.float()
    chosen = logits.gather(-1, wanted.clamp(min=0))
    some = present.any(-1)
    return -((chosen * weight).sum(-1)[some] / weight.sum(-1)[some]).mean(), some


def naming_loss(tokens: Tensor, labels: dict[str, Tensor], embedding: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of naming what each image token covers, and the share of words named right.

    ``tokens`` (B, T, width) leave the connector; ``embedding`` (vocabulary, width). Where a token covers several
    words (or colours, or kinds), each counts the same.
    """
    names = of_tokens(labels["names"])
    flat = tokens.float().flatten(0, 1)
    flat = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-5)
    losses, right = {}, flat.new_zeros(())
    for index, group in enumerate(("word", "name_colour", "name_kind")):
        wanted = names[:, :, index]
        wanted, covered = wanted[(wanted != IGNORED).any(1)], flat[(wanted != IGNORED).any(1)]
        logits = functional.log_softmax(covered @ embedding.float().T, -1)
        losses[group], _ = several(logits, wanted)
        if group == "word":
            right = (logits.argmax(-1, keepdim=True) == wanted).any(1).float().mean()
    return losses, right


WEIGHTS = {"kind": 0.5, "colour": 0.5, "edges": 1.0, "digits": 0.4, "characters": 1.0, "word": 0.7, "token_digits": 0.7}


def dense_loss(
    model: SmolVLMForConditionalGeneration, heads: DenseHeads, patches: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all dense losses for the tower's ``patches`` (B, P, width), and shares right by name."""
    losses, shares = heads.losses(patches, batch)
    tokens = model.model.connector(patches)
    named, shares["word"] = naming_loss(tokens, batch, model.get_input_embeddings().weight)
    losses |= named
    losses["token_digits"], shares["token_digits"] = heads.token_loss(tokens, batch)
    return sum(WEIGHTS.get(key, 0.2) * loss for key, loss in losses.items()), shares


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pictures (B, 3, H, W) -> what the image processor gives the model, -1..1."""
    return pixels.float() / 127.5 - 1.0


def see(model: SmolVLMForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The tower's patches (B, P, width) for uint8 ``pixels``."""
    return model.model.vision_model(pixel_values=normalise(pixels)).last_hidden_state


def main() -> None:
    """Run stage 1 from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, batch=48, rate=1e-3)
    parser.add_argument("--smallest", type=float, default=15.0, help="smallest text, in pixels of the square")
    parser.add_argument("--largest", type=float, default=23.0, help="largest text, in pixels of the square")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(BUNDLED)
    model = new_model(tokenizer)
    heads = DenseHeads(model.config.vision_config.hidden_size)
    if arguments.warm and (Path(arguments.warm) / "checkpoint.pt").exists():
        load_checkpoint(Path(arguments.warm), {"model": model, "heads": heads})
    elif arguments.warm:
        warm_start(model, Path(arguments.warm))
    embedding = model.get_input_embeddings()
    groups = [[*model.model.vision_model.parameters(), *model.model.connector.parameters(), embedding.weight]]
    groups.append(list(heads.parameters()))
    style = Style(text_px=(arguments.smallest, arguments.largest))

    def batches(first_seed: int) -> DataLoader:
        data = DenseScreens(tokenizer, first_seed, style)
        return DataLoader(data, arguments.batch, num_workers=arguments.workers, prefetch_factor=4)

    def step(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return dense_loss(model, heads, see(model, batch["pixels"]), batch)

    random.seed(0)
    schedule = Schedule(arguments.rate, arguments.warmup, arguments.minutes, arguments.decay)
    modules = {"model": model, "heads": heads}
    run_loop(arguments, modules, [(group, 1.0) for group in groups], batches, step, schedule)


if __name__ == "__main__":
    main()
