"""Measure Leaf on pages that it has never seen, as Onsight serves it, and again with the pictures shuffled.

python -m training.evaluate_leaf --pages 200 --out docs/results/leaf.md
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from onsight.core.embedding import Embedding
from onsight.core.messages import Image, Text
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.engines.torch_engine.loading import Checkpoint
from onsight.engines.torch_engine.scoring import max_sim
from training.draw import BUILT_IN_FONT
from training.leaf import LEAF
from training.lexicon import CONCEPTS, UNTAUGHT_WORDS, WORDS
from training.pages import FAMILY, Page, PageStyle, draw_page
from training.queries import other_words, own_words, phrase

FIRST_SEED = 9_000_000
"""Evaluation's seeds: training draws only above training.reading.TRAINING_SEEDS."""

STYLE = PageStyle(fonts=(BUILT_IN_FONT,), even=False)
"""The built-in font, so that every machine draws the same pages."""

RARE, OTHER_WORDS = "two words of the page, one of them its rarest", "synonyms: no word of the query is on the page"


@dataclass(frozen=True)
class Query:
    """A query and the number of the one page that has all of it."""

    kind: str
    text: str
    page: int


@dataclass(frozen=True)
class Scores:
    """Shares of queries: own page first, among the first five, its discounted gain there; how many were asked."""

    first: float
    five: float
    gain: float
    asked: int


Row = tuple[str, Scores, Scores]
"""A row of the table: its name, the scores, and those with the pictures shuffled."""


def queries_about(pages: Sequence[Page]) -> list[Query]:
    """For each page a query of each kind, as far as the page has one; no query has anything of its page's title."""
    holders: dict[int, set[int]] = {}
    for number, page in enumerate(pages):
        for concept in page.concepts():
            holders.setdefault(concept, set()).add(number)
    made = []
    for number, page in enumerate(pages):
        rng = random.Random(page.seed)
        body = sorted(page.concepts() - page.title_concepts())
        rng.shuffle(body)
        body.sort(key=lambda concept: len(holders[concept]))
        pairs = [pair for pair in combinations(body, 2) if holders[pair[0]] & holders[pair[1]] == {number}]
        if pairs:
            made.append(Query(RARE, phrase(own_words(page, pairs[0]), rng), number))
        threes = [trio for trio in combinations(body, 3) if set.intersection(*(holders[n] for n in trio)) == {number}]
        for chosen in rng.sample([*pairs, *threes], len(pairs) + len(threes)):
            words = other_words(page, chosen, rng)
            if words is not None:
                made.append(Query(OTHER_WORDS, phrase(words, rng), number))
                break
    return made


class Retriever:
    """The model of a folder as the server runs it."""

    def __init__(self, folder: Path):
        self._model = ColQwen(Checkpoint(folder, torch.device("cpu"), torch.float32))

    def pages(self, pages: Sequence[Page]) -> list[Embedding]:
        """One embedding a page."""
        return [self.embed(Image.of(page.image.tobytes(), *page.image.size)) for page in pages]

    def scores(self, queries: Sequence[Query], embedded: Sequence[Embedding]) -> list[list[float]]:
        """[queries][pages]."""
        return max_sim([self.embed(Text(query.text)) for query in queries], embedded)

    def embed(self, one: Text | Image) -> Embedding:
        prompt = self._model.read(one)
        self._model.look(prompt)
        return self._model.embed([prompt])[0]


def judge(queries: Sequence[Query], scores: Sequence[Sequence[float]], shift: int = 0) -> Scores:
    """How well ``scores`` [queries][pages] find; with ``shift``, pages stand in for others so far away."""
    first = five = gain = 0.0
    for query, row in zip(queries, scores, strict=True):
        own = row[(query.page + shift) % len(row)]
        rank = sum(score >= own for score in row) - 1  # a tie is no find
        first += rank == 0
        five += rank < 5
        gain += 1 / math.log2(2 + rank) if rank < 5 else 0.0
    count = max(len(queries), 1)
    return Scores(first / count, five / count, gain / count, len(queries))


def strange_pages(count: int) -> tuple[list[Page], list[Query]]:
    """Pages with one word each that training never draws, and queries for it alone."""
    pages, queries = [], []
    for number, word in enumerate(UNTAUGHT_WORDS[:count]):
        pages.append(draw_page(FIRST_SEED + 100_000 + number * FAMILY, replace(STYLE, strange=(word,))))
        queries.append(Query("strange", word, number))
    return pages, queries


def search(retriever: Retriever, count: int, style: PageStyle) -> tuple[list[Query], list[list[float]]]:
    """Queries about so many pages, and their scores."""
    pages = [draw_page(FIRST_SEED + number, style) for number in range(count)]
    queries = queries_about(pages)
    return queries, retriever.scores(queries, retriever.pages(pages))


def table(rows: Sequence[Row]) -> str:
    """The Markdown table; a row is its name, the scores and those with the pictures shuffled."""
    lines = [
        "| what | recall@1 | recall@5 | nDCG@5 | shuffled: recall@1 | nDCG@5 | queries |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, true, shuffled in rows:
        shares = " | ".join(f"{100 * share:.1f} %" for share in (true.first, true.five))
        chance = f"{100 * shuffled.first:.1f} % | {shuffled.gain:.3f}"
        lines.append(f"| {name} | {shares} | {true.gain:.3f} | {chance} | {true.asked} |")
    return "\n".join(lines)


def measure(retriever: Retriever, count: int) -> tuple[list[Row], list[str]]:
    """The rows of the table, and some queries with what they found."""
    queries, scores = search(retriever, count, STYLE)
    rows = []
    for kind in (RARE, OTHER_WORDS):
        chosen = [number for number, query in enumerate(queries) if query.kind == kind]
        part, judged = [queries[n] for n in chosen], [scores[n] for n in chosen]
        rows.append((kind, judge(part, judged), judge(part, judged, count // 2)))
    rows.append(("both together", judge(queries, scores), judge(queries, scores, count // 2)))
    strange, wanted = strange_pages(count)
    found = retriever.scores(wanted, retriever.pages(strange))
    name = f"one word that training never drew, among {len(strange)} pages"
    rows.append((name, judge(wanted, found), judge(wanted, found, len(strange) // 2)))
    large, scored = search(retriever, count // 2, replace(STYLE, enlarged=1.0))
    name = f"all, among {count // 2} pages drawn larger and made smaller"
    rows.append((name, judge(large, scored), judge(large, scored, count // 4)))
    examples = []
    for query, row in list(zip(queries, scores, strict=True))[:12]:
        rank = sum(score >= row[query.page] for score in row)
        examples.append(f"- {query.text!r}: its page comes {rank}. of {len(row)}")
    return rows, examples


def report(arguments: argparse.Namespace, body: str, examples: Sequence[str]) -> str:
    """The whole Markdown page."""
    digest = hashlib.sha256((arguments.model / "model.safetensors").read_bytes()).hexdigest()
    shown = "\n".join(examples)
    return f"""# Leaf, measured

{arguments.pages} pages drawn for this alone (seeds from {FIRST_SEED}; training draws others): new arrangements of the
{len(WORDS)} words of {len(CONCEPTS)} concepts that training taught, in Pillow's built-in font, in families of {FAMILY}
that share much of what they speak of. Every query names two or three concepts that its page alone has together, none
of them in the page's title; a reader without fault would find every page. Chance is {100 / arguments.pages:.1f} %.
"Shuffled" gives every page's picture to another page: what is left there is chance. Vectors and scores are those of
the server (`ColQwen`, `max_sim`), in float32.

{body}

- weights: sha256 `{digest}`
- trained: {arguments.trained or "not recorded"}
- command: `python -m training.evaluate_leaf --pages {arguments.pages} --out docs/results/leaf.md`

Some queries of this run, unpicked:

{shown}
"""


def main() -> None:
    """Run the evaluation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=LEAF)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--trained", default="", help="one line on how the weights were trained, for the page")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    rows, examples = measure(Retriever(arguments.model), arguments.pages)
    page = report(arguments, table(rows), examples)
    print(page)
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
