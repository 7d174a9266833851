"""Leaf's stage 2: a query scores the page that it is about above all others, besides all that stage 1 teaches.

python -m training.matching --out runs/matching --warm runs/reading --minutes 30
"""

from __future__ import annotations

import argparse
from collections import deque

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from training.dense import IGNORED
from training.leaf import PagePrompt
from training.loop import Schedule, add_loop_arguments, run_loop
from training.pages import PageStyle
from training.reading import Read, ReadingPages, read, start

SHARPNESS = 8.0
"""What a difference of scores is multiplied with before the softmax over pages."""


def max_sim(queries: Tensor, counts: Tensor, pages: Tensor, present: Tensor) -> Tensor:
    """(queries, pages): the sum over a query's first ``counts`` vectors of each one's best product with the page's.

    ``queries`` (queries, longest, DIMS), ``pages`` (pages, longest, DIMS), ``present`` (pages, longest).
    """
    products = torch.einsum("qtd,psd->qpts", queries, pages).float()
    best = products.masked_fill(~present[None, :, None], -1.0).amax(-1)  # [queries, pages, tokens]
    counted = torch.arange(queries.shape[1], device=queries.device) < counts[:, None]
    return (best * counted[:, None]).sum(-1)


class Shelf:
    """The last pages that were read, against which queries are tried too: vectors without gradients."""

    def __init__(self, most: int):
        self._kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=most)

    def add(self, made: Read, concepts: Tensor) -> None:
        """Keep the pages of a step; ``concepts`` (pages, concepts)."""
        for vectors, present, flags in zip(made.pages.detach(), made.present, concepts, strict=True):
            self._kept.append((vectors[present], flags))

    def pages(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(vectors, present, concepts) of all that is kept, or None."""
        if not self._kept:
            return None
        vectors = torch.nn.utils.rnn.pad_sequence([one for one, _ in self._kept], batch_first=True)
        lengths = torch.tensor([len(one) for one, _ in self._kept], device=vectors.device)
        present = torch.arange(vectors.shape[1], device=vectors.device) < lengths[:, None]
        return vectors, present, torch.stack([flags for _, flags in self._kept])


def matching_loss(made: Read, batch: dict[str, Tensor], shelf: Shelf) -> tuple[Tensor, Tensor]:
    """(loss, share of queries whose own page comes first) among the batch's pages and those on the shelf.

    A page that has all that a query asks for is right as well, and no rival.
    """
    asked, concepts = batch["asked_concepts"], batch["page_concepts"]
    counts = (batch["asked_names"] != IGNORED).sum(1)
    scores = max_sim(made.queries, counts, made.pages, made.present)
    kept = shelf.pages()
    if kept is not None:
        scores = torch.cat([scores, max_sim(made.queries, counts, *kept[:2])], 1)
        concepts = torch.cat([concepts, kept[2]])
    own = torch.arange(len(asked), device=asked.device) // (len(asked) // len(made.pages))
    right = asked @ concepts.T >= asked.sum(1, keepdim=True)
    right[torch.arange(len(asked)), own] = False
    scores = (SHARPNESS * scores).masked_fill(right, -torch.inf)
    return functional.cross_entropy(scores, own), (scores.argmax(1) == own).float().mean()


def main() -> None:
    """Run stage 2 from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, batch=8, rate=1e-3)
    parser.add_argument("--packed", type=float, default=0.3, help="share of pages full of words that mean something")
    parser.add_argument("--about", type=int, default=3, help="queries about each page")
    parser.add_argument("--shelf", type=int, default=96, help="earlier pages that queries are tried against")
    parser.add_argument("--weight", type=float, default=0.3, help="of this stage's loss beside stage 1's")
    arguments = parser.parse_args()
    tokenizer, modules = start(arguments)
    prompt, shelf = PagePrompt(tokenizer), Shelf(arguments.shelf)
    style = PageStyle(packed=arguments.packed)

    def batches(first_seed: int) -> DataLoader:
        data = ReadingPages(tokenizer, first_seed, arguments.batch, style, arguments.about)
        return DataLoader(data, None, num_workers=arguments.workers, prefetch_factor=4)

    def step(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        made = read(modules["model"], modules["heads"], prompt, batch)
        loss, first = matching_loss(made, batch, shelf)
        shelf.add(made, batch["page_concepts"])
        return made.loss + arguments.weight * loss, {**made.shares, "matching": loss, "first": first}

    schedule = Schedule(arguments.rate, arguments.warmup, arguments.minutes, arguments.decay)
    groups = [(list(module.parameters()), 1.0) for module in modules.values()]
    run_loop(arguments, modules, groups, batches, step, schedule)


if __name__ == "__main__":
    main()
