"""Leaf's stage 1: every image token names the words that it covers, every token of a query the word that it is.

Both name concepts by one table of vectors, so that what means the same lies at the same place, whoever says it.

python -m training.reading --out runs/reading --minutes 60
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.dense import IGNORED, several
from training.leaf import (
    MERGE,
    PATCH,
    PagePrompt,
    embed_queries,
    load_tokenizer,
    new_leaf,
    query_ids,
    see,
    to_cells,
    to_patches,
    warm_start,
)
from training.lexicon import CONCEPT_OF, CONCEPTS, WORDS
from training.loop import Schedule, add_loop_arguments, load_checkpoint, run_loop
from training.pages import CELL, Page, PageStyle, draw_page
from training.queries import any_words, choose, made_up_query, phrase

TRAINING_SEEDS = 20_000_000
"""Training draws pages from here on; evaluation below."""
NOTHING = len(CONCEPTS)
"""What blank paper, function words and the places behind a query name: one thing, which every page has."""
BLANK = len(WORDS)
"""What a cell without a word of the lexicon is called among words."""
WORD_NUMBER = {word: number for number, word in enumerate(WORDS)}
CONCEPT_OF_NUMBER = torch.tensor([*(CONCEPT_OF[word] for word in WORDS), NOTHING])
SLOTS = 3
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789."
MOST_NAMES = 4
"""An image token covers at most so many words that count."""


def page_labels(page: Page, across: float, down: float, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """((patches, SLOTS) characters, (cells, MOST_NAMES) words) of a page of so many ``rows``, ``columns`` of cells.

    ``across`` and ``down``: what a pixel of the page became. 0 is no character; a cell without a word is named
    BLANK, and IGNORED all over where it holds a small part of one.
    """
    characters = np.zeros((rows * MERGE, columns * MERGE, SLOTS), np.int64)
    names = np.full((rows, columns, MOST_NAMES), IGNORED, np.int64)
    names[..., 0] = BLANK
    for word in page.words:
        top, bottom = word.top * down, word.bottom * down
        left, right = word.edges[0] * across, word.edges[-1] * across
        middle = (top + bottom) / 2
        slot_row = min(int(middle) // PATCH, rows * MERGE - 1)
        for character, first, last in zip(word.text.lower(), word.edges, word.edges[1:], strict=False):
            slot = min(int((first + last) / 2 * across) * SLOTS // PATCH, columns * MERGE * SLOTS - 1)
            characters[slot_row, slot // SLOTS, slot % SLOTS] = 1 + CHARACTERS.index(character)
        if word.concept is None:
            continue
        for row in range(int(top) // CELL, min(int(bottom) // CELL, rows - 1) + 1):
            height = (min(bottom, (row + 1) * CELL) - max(top, row * CELL)) / (bottom - top)
            for column in range(int(left) // CELL, min(int(right) // CELL, columns - 1) + 1):
                width = min(right, (column + 1) * CELL) - max(left, column * CELL)
                if height > 0.45 and width > min(8, 0.4 * (right - left)):
                    _name(names[row, column], WORD_NUMBER[word.plain])
                elif height > 0.25 and width > 3 and names[row, column, 0] == BLANK:
                    names[row, column, 0] = IGNORED
    return characters.reshape(rows * columns * MERGE**2, SLOTS), names.reshape(rows * columns, MOST_NAMES)


def _name(names: np.ndarray, word: int) -> None:
    """Add a word's number to a cell's names, where there is room."""
    free = np.nonzero((names == IGNORED) | (names == BLANK))[0]
    if len(free):
        names[free[0]] = word


def in_cells(characters: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(patches, SLOTS) row by row -> in the tower's order, the four patches of a cell together."""
    grid = characters.reshape(rows, MERGE, columns, MERGE, SLOTS)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, SLOTS)


def page_example(page: Page) -> dict[str, Tensor]:
    """One page's patches, grid and labels as tensors."""
    picture = to_cells(page.image)
    rows, columns = picture.height // CELL, picture.width // CELL
    across, down = picture.width / page.image.width, picture.height / page.image.height
    characters, names = page_labels(page, across, down, rows, columns)
    return {
        "pixels": torch.from_numpy(to_patches(picture)),
        "grids": torch.tensor([[rows * MERGE, columns * MERGE]]),
        "characters": torch.from_numpy(in_cells(characters, rows, columns)),
        "names": torch.from_numpy(names),
    }


def query_examples(tokenizer: Tokenizer, texts: Sequence[str], concept: Mapping[int, int]) -> dict[str, Tensor]:
    """The token ids of queries, padded behind, and the concept that each token names: (queries, longest) each.

    ``concept``: see ``concept_of_tokens``.
    """
    rows = query_ids(tokenizer, texts)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    wanted = nn.utils.rnn.pad_sequence(
        [torch.tensor([concept.get(token, NOTHING) for token in row]) for row in rows],
        batch_first=True,
        padding_value=IGNORED,
    )
    return {"asked": ids, "asked_names": wanted}


def concept_of_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Token id -> concept, for the words of the lexicon."""
    encoded = {word: tokenizer.encode(word, add_special_tokens=False).ids for word in CONCEPT_OF}
    return {ids[0]: CONCEPT_OF[word] for word, ids in encoded.items()}


class ReadingPages(IterableDataset):
    """Endless batches of pages and of queries: about nothing in particular, or else about the pages, with their truth.

    ``about``: how many queries each page gets. They bring ``page_concepts`` (pages, concepts) and ``asked_concepts``
    (queries, concepts), 1 where one has that concept.
    """

    def __init__(self, tokenizer: Tokenizer, first_seed: int, batch: int, style: PageStyle, about: int = 0):
        self.tokenizer, self.first_seed, self.batch, self.style = tokenizer, first_seed, batch, style
        self.about, self.concept = about, concept_of_tokens(tokenizer)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        step, start = (worker.num_workers, worker.id) if worker else (1, 0)
        seed = TRAINING_SEEDS + self.first_seed + start * self.batch
        while True:
            yield self.example(seed)
            seed += step * self.batch

    def example(self, seed: int) -> dict[str, Tensor]:
        """The batch whose first page is that of ``seed``."""
        rng = random.Random(seed)
        pages = [draw_page(seed + n, self.style) for n in range(self.batch)]
        parts = [page_example(page) for page in pages]
        made = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        if not self.about:
            texts = [made_up_query(rng) for _ in range(32)]
            return made | query_examples(self.tokenizer, texts, self.concept)
        asked = [choose(page, rng) for page in pages for _ in range(self.about)]
        made["page_concepts"] = _flags([page.concepts() for page in pages])
        made["asked_concepts"] = _flags(asked)
        texts = [phrase(any_words(concepts, rng), rng) for concepts in asked]
        return made | query_examples(self.tokenizer, texts, self.concept)


def _flags(sets: Sequence[Collection[int]]) -> Tensor:
    """(sets, concepts), 1 for those that a set has."""
    flags = torch.zeros(len(sets), NOTHING)
    for row, concepts in zip(flags, sets, strict=True):
        row[list(concepts)] = 1
    return flags


class ReadingHeads(nn.Module):
    """The table of concepts, the words and the characters that the tower shows; not part of the stored model."""

    def __init__(self, patches: int, tokens: int, dims: int):
        super().__init__()
        self.concepts = nn.Parameter(torch.randn(NOTHING + 1, dims) / dims**0.5)
        self.words = nn.Linear(tokens, BLANK + 1)
        self.characters = nn.Linear(patches, SLOTS * (1 + len(CHARACTERS)))

    def named(self, vectors: Tensor) -> Tensor:
        """(..., concepts) log probabilities of what ``vectors`` (..., DIMS) of length 1 name."""
        return functional.log_softmax(SHARPNESS * vectors @ functional.normalize(self.concepts, dim=-1).T, -1)

    def word_loss(self, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, share right) of the words that image ``tokens`` (T, width) show before the language model sees them.

        Words, not concepts: what looks alike is told apart first, what means the same is put together later.
        """
        logits = functional.log_softmax(self.words(tokens).float(), -1)
        words, blank = _kinds(wanted)
        loss, blanks = several(logits[words], wanted[words])[0], -logits[blank][:, BLANK].mean()
        right = (logits[words].argmax(-1, keepdim=True) == wanted[words]).any(-1)
        return loss + 0.2 * blanks, right.float().mean()

    def character_loss(self, patches: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, share right) of the characters of ``patches`` (P, width); ``wanted`` (P, SLOTS)."""
        lines = (wanted > 0).any(-1)
        # Most patches are blank: keep those with text and a few others.
        kept = lines | (torch.rand(len(lines), device=lines.device) < 0.05)
        logits = self.characters(patches[kept]).float().view(-1, 1 + len(CHARACTERS))
        wanted = wanted[kept].flatten()
        right = (logits.argmax(-1) == wanted)[wanted > 0].float().mean()
        return functional.cross_entropy(logits, wanted), right


SHARPNESS = 16.0
"""What a cosine is multiplied with before the softmax over concepts."""


def naming_losses(
    heads: ReadingHeads, tokens: Tensor, queries: Tensor, batch: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(losses, shares right) of naming concepts: image ``tokens`` (T, DIMS), ``queries`` (queries, longest, DIMS)."""
    wanted, asked = batch["names"], batch["asked_names"].flatten()
    words, blank = _kinds(wanted)
    wanted = torch.where(wanted >= 0, CONCEPT_OF_NUMBER.to(wanted.device)[wanted], wanted)
    logits = heads.named(tokens)
    losses = {"word": several(logits[words], wanted[words])[0], "blank": several(logits[blank], wanted[blank])[0]}
    told = heads.named(queries).flatten(0, 1)
    content, empty = (asked >= 0) & (asked != NOTHING), asked == NOTHING
    losses["asked"] = functional.nll_loss(told[content], asked[content])
    losses["asked_empty"] = functional.nll_loss(told[empty], asked[empty])
    shares = {
        "words": (logits[words].argmax(-1, keepdim=True) == wanted[words]).any(-1).float().mean(),
        "blanks": (logits[blank].argmax(-1) == NOTHING).float().mean(),
        "queries": (told[content].argmax(-1) == asked[content]).float().mean(),
    }
    return losses, shares


def _kinds(names: Tensor) -> tuple[Tensor, Tensor]:
    """(cells with words, blank cells) of ``names`` (cells, MOST_NAMES)."""
    blank = (names == BLANK).any(-1)
    return (names >= 0).any(-1) & ~blank, blank


WEIGHTS = {"characters": 0.5, "spelt": 0.7, "word": 1.0, "blank": 0.2, "prompt": 0.02, "asked": 0.2, "asked_empty": 0.1}


@dataclass(frozen=True)
class Read:
    """What one step made: the weighted sum of all losses, shares right by name, and vectors.

    ``pages`` (pages, longest, DIMS), where ``present`` (pages, longest) says so; ``queries`` (queries, longest, DIMS).
    """

    loss: Tensor
    shares: dict[str, Tensor]
    pages: Tensor
    present: Tensor
    queries: Tensor


def read(model: nn.ModuleDict, heads: ReadingHeads, prompt: PagePrompt, batch: dict[str, Tensor]) -> Read:
    """Read a batch of pages and queries, and judge it."""
    patches, tokens = see(model, batch["pixels"], batch["grids"])
    pages, present = prompt.embed(model, tokens, batch["grids"])
    queries = embed_queries(model, batch["asked"])
    images = present.clone()
    images[:, : len(prompt.before)] = False
    ends = present.sum(1) - len(prompt.after)
    images &= torch.arange(images.shape[1], device=images.device) < ends[:, None]
    losses, shares = naming_losses(heads, pages[images], queries, batch)
    losses["characters"], shares["characters"] = heads.character_loss(patches, batch["characters"])
    losses["spelt"], shares["spelt"] = heads.word_loss(tokens, batch["names"])
    losses["prompt"] = -heads.named(pages[present & ~images])[:, NOTHING].mean()
    loss = torch.stack([WEIGHTS[key] * loss for key, loss in losses.items()]).sum()
    return Read(loss, shares, pages, present, queries)


def start(arguments: argparse.Namespace) -> tuple[Tokenizer, dict[str, nn.Module]]:
    """The tokenizer, and the model and its heads as ``arguments.warm`` has them, else new ones."""
    tokenizer = load_tokenizer()
    model = new_leaf(tokenizer)
    vision = model["visual"].config
    heads = ReadingHeads(vision.hidden_size, vision.out_hidden_size, model["custom_text_proj"].out_features)
    modules: dict[str, nn.Module] = {"model": model, "heads": heads}
    if arguments.warm and (Path(arguments.warm) / "checkpoint.pt").exists():
        load_checkpoint(Path(arguments.warm), modules)
    elif arguments.warm:
        warm_start(model, Path(arguments.warm))
    return tokenizer, modules


def main() -> None:
    """Run stage 1 from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, batch=8, rate=2e-3)
    parser.add_argument("--packed", type=float, default=0.75, help="share of pages full of words that mean something")
    arguments = parser.parse_args()
    tokenizer, modules = start(arguments)
    prompt, style = PagePrompt(tokenizer), PageStyle(packed=arguments.packed)

    def batches(first_seed: int) -> DataLoader:
        data = ReadingPages(tokenizer, first_seed, arguments.batch, style)
        return DataLoader(data, None, num_workers=arguments.workers, prefetch_factor=4)

    def step(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        made = read(modules["model"], modules["heads"], prompt, batch)
        return made.loss, made.shares

    schedule = Schedule(arguments.rate, arguments.warmup, arguments.minutes, arguments.decay)
    groups = [(list(module.parameters()), 1.0) for module in modules.values()]
    run_loop(arguments, modules, groups, batches, step, schedule)


if __name__ == "__main__":
    main()
