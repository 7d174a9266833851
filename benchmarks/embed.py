"""The embedding engine beside a plain loop over the same weights; vectors on the wire; MaxSim over many pages.

python -m benchmarks.embed [--model FOLDER] [--pages N] [--queries N] [--rounds N] [--index-pages N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import psutil
import torch

from benchmarks.families import Pictures
from benchmarks.report import RESULTS, Aim, Report, Table, median, publish
from onsight.api.vectors.answers import Style, raw, whole
from onsight.core.embedding import Embedding
from onsight.core.geometry import Size
from onsight.core.messages import Image, Text
from onsight.engines.torch_engine import TorchEmbedEngine, TorchSettings
from onsight.engines.torch_engine.scoring import Shelf, max_sim
from onsight.models.card import find_card
from onsight.tasks.embed import Embedded
from onsight.tasks.vectors import from_numbers
from tests.engines.torch_engine.colqwen_reference import ColQwenReference
from tests.tiny_colqwen import write_colqwen

AT_ONCE = (1, 8, 32)
PAGE_PX = (620, 877)
"""An A4 page at 75 dots an inch."""
QUERY_VECTORS, PAGE_VECTORS, DIMS = 20, 256, 128
SEARCHES = 20
"""So many queries are searched for, for times and recall."""
NEAR = 0.35
"""How much of a query's vector is the page's own in the search; the rest is noise."""
FLAT_PAGES = 1000


@dataclass(slots=True)
class Rates:
    """Inputs a second, a number a round, by (side, how many at once)."""

    pages: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    queries: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def best(self, of: dict[tuple[str, int], list[float]], side: str) -> float:
        return max(median(rounds) for (name, _), rounds in of.items() if name == side)


@dataclass(frozen=True, slots=True)
class Search:
    """Seconds a query over all pages, and the share of the true best ten that were found."""

    form: str
    seconds: list[float]
    recall: float


class Ours:
    """The engine, asked for one input at a time, so many of them at once."""

    name = "Onsight"

    def __init__(self, engine: TorchEmbedEngine) -> None:
        self._engine = engine

    async def run(self, inputs: Sequence[Text | Image], at_once: int) -> float:
        """Inputs a second."""
        places = asyncio.Semaphore(at_once)

        async def one(given: Text | Image) -> None:
            async with places:
                await self._engine.embed(given)

        began_s = time.perf_counter()
        await asyncio.gather(*(one(given) for given in inputs))
        return len(inputs) / (time.perf_counter() - began_s)


class Loop:
    """What one writes over colpali_engine: a batch is processed, then embedded, then the next one."""

    name = "plain loop"

    def __init__(self, folder: Path) -> None:
        self._reference = ColQwenReference(folder)
        self._threads = torch.get_num_threads()

    async def run(self, inputs: Sequence[Text | Image], at_once: int) -> float:
        """Inputs a second, in batches of `at_once`."""
        torch.set_num_threads(self._threads)
        began_s = time.perf_counter()
        for start in range(0, len(inputs), at_once):
            batch = inputs[start : start + at_once]
            pages = [one for one in batch if isinstance(one, Image)]
            made = (
                self._reference.pages(pages)
                if pages
                else self._reference.queries([one.text for one in batch if isinstance(one, Text)])
            )
            assert len(made) == len(batch)
        return len(inputs) / (time.perf_counter() - began_s)


Side = Ours | Loop


async def measure(folder: Path, pages: int, queries: int, rounds: int) -> tuple[Rates, list[float], Embedding]:
    """The rates, the process' memory in MiB after each hundred of many pages, and one page's vectors."""
    drawn, found = Pictures(), Rates()
    engine = TorchEmbedEngine(folder, find_card(str(folder), folder), TorchSettings(device="cpu", dtype="float32"))
    await engine.start()
    try:
        sides: list[Side] = [Ours(engine), Loop(folder)]
        for number in range(rounds):
            shown = [drawn.next(*PAGE_PX) for _ in range(pages)]
            asked = [Text(f"What did the report of round {number} say about item {item}?") for item in range(queries)]
            for side in sides[:: -1 if number % 2 else 1]:
                for at_once in AT_ONCE:
                    found.pages.setdefault((side.name, at_once), []).append(await side.run(shown, at_once))
                    found.queries.setdefault((side.name, at_once), []).append(await side.run(asked, at_once))
        page = await engine.embed(drawn.next(*PAGE_PX))
        memory = await watch_memory(engine.embed, drawn)
    finally:
        await engine.close()
    return found, memory, page


async def watch_memory(embed: Callable[[Image], Awaitable[Embedding]], drawn: Pictures) -> list[float]:
    """MiB that the process holds after every hundredth page; nothing that was made is kept."""
    held = []
    for _ in range(0, FLAT_PAGES, 100):
        for _ in range(0, 100, 10):
            await asyncio.gather(*(embed(drawn.next(*PAGE_PX)) for _ in range(10)))
        gc.collect()
        held.append(psutil.Process().memory_info().rss / 2**20)
    return held


def wire(page: Embedding) -> Table:
    """Bytes of one page's answer in each form."""
    item = Embedded(0, page, page.rows, page.image.length, size=Size(*PAGE_PX))
    rows = []
    for dtype in ("f32", "f16", "int8", "binary"):
        style, coded = Style("m", dtype), Style("m", dtype, "base64")
        rows.append(
            (dtype, *(float(len(form)) for form in (whole([item], style), whole([item], coded), raw([item], style))))
        )
    return Table(
        f"Bytes on the wire of one page of {page.rows} vectors", ("dtype", "JSON", "base64", "raw"), tuple(rows)
    )


def search(index_pages: int) -> list[Search]:
    """Search among random pages, each query made of vectors of one page and noise."""
    dice = numpy.random.default_rng(0)
    vectors = dice.standard_normal((index_pages, PAGE_VECTORS, DIMS), dtype=numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=2, keepdims=True)
    queries = [_query(vectors[dice.integers(index_pages)], dice) for _ in range(SEARCHES)]
    pages = [from_numbers(page, "f32") for page in vectors]
    del vectors
    true = [_best(max_sim([query], pages)[0]) for query in queries]
    found = []
    for form in ("f32", "int8"):
        shelf = Shelf(pages, form)
        shelf.scores(queries[0])  # not counted: the first search pays for lazy set-up
        seconds, hits = [], []
        for query, best in zip(queries, true, strict=True):
            began_s = time.perf_counter()
            scores = shelf.scores(query)
            seconds.append(time.perf_counter() - began_s)
            hits.append(len(best & _best(scores)) / len(best))
        found.append(Search(form, seconds, sum(hits) / len(hits)))
        del shelf
    return found


def _query(page: numpy.ndarray, dice: numpy.random.Generator) -> Embedding:
    """Some of a page's vectors, buried in noise."""
    chosen = page[dice.choice(len(page), QUERY_VECTORS, replace=False)]
    noise = dice.standard_normal(chosen.shape, dtype=numpy.float32)
    noise /= numpy.linalg.norm(noise, axis=1, keepdims=True)
    mixed = NEAR * chosen + (1 - NEAR) * noise
    return from_numbers(mixed / numpy.linalg.norm(mixed, axis=1, keepdims=True), "f32")


def _best(scores: list[float], count: int = 10) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda index: -scores[index])[:count])


def report(rates: Rates, memory: list[float], page: Embedding, searches: list[Search], index_pages: int) -> Report:
    """Everything measured, beside the aims."""
    ours = {kind: rates.best(of, Ours.name) for kind, of in (("pages", rates.pages), ("queries", rates.queries))}
    one_by_one = median(rates.queries[Loop.name, 1])
    fastest = min(searches, key=lambda one: median(one.seconds))
    aims = (
        Aim(
            "pages/s, beside the plain loop at its best batch",
            1.3,
            ours["pages"] / rates.best(rates.pages, Loop.name),
            "x",
            True,
        ),
        Aim(
            "concurrent single queries/s, beside the plain loop, one at a time",
            3.0,
            ours["queries"] / one_by_one,
            "x",
            True,
        ),
        Aim(
            "concurrent single queries/s, beside the plain loop at its best batch",
            1.0,
            ours["queries"] / rates.best(rates.queries, Loop.name),
            "x",
            True,
        ),
        Aim(f"one query against {index_pages} pages ({fastest.form})", 250.0, median(fastest.seconds) * 1000, "ms"),
        Aim(f"memory after {FLAT_PAGES} pages, beside that after 100", 1.05, memory[-1] / memory[0], "x"),
    )
    tables = (
        _rates("Pages a second", rates.pages),
        _rates("Queries a second", rates.queries),
        wire(page),
        Table(
            f"One query of {QUERY_VECTORS} vectors against {index_pages} pages of {PAGE_VECTORS}",
            ("vectors", "ms, median", "ms, worst", "of the true best ten"),
            tuple(
                (one.form, median(one.seconds) * 1000, max(one.seconds) * 1000, f"{one.recall:.1%}") for one in searches
            ),
        ),
        Table(
            "Memory of the process while pages are embedded and dropped",
            ("pages", "MiB"),
            tuple((f"{100 * number}", held) for number, held in enumerate(memory, 1)),
        ),
    )
    notes = (
        f"Threads: {torch.get_num_threads()}. Both sides have the same weights and get the same pages of"
        f" {PAGE_PX[0]}x{PAGE_PX[1]} px as pixels; in each round the sides take turns at being first.",
        "The plain loop is transformers' Qwen2_5_VLModel with a projection, padded as colpali_engine pads, and equal to"
        " it (python -m tests.colpali_vectors): a batch is processed and then embedded.",
        "Onsight is asked for one input at a time, so many of them at once, as clients on their own do. A loop that has"
        " all its queries beforehand hands nothing over and wakes nobody; the second aim for queries says what that is"
        " worth.",
        "The search: random pages; queries are vectors of one page under noise. Time is that of the search alone, with"
        " the vectors laid out in memory. Recall is against exact scores in float32.",
        "Bytes on the wire are those of `/v1/embeddings` without HTTP's own headers.",
    )
    details: dict[str, object] = {
        "pages_per_s": {f"{name}, {count}": rounds for (name, count), rounds in rates.pages.items()},
        "queries_per_s": {f"{name}, {count}": rounds for (name, count), rounds in rates.queries.items()},
        "search_s": {one.form: one.seconds for one in searches},
        "memory_mib": memory,
    }
    return Report("embed", "Embedding and late interaction", aims, tables, notes, details)


def _rates(title: str, of: dict[tuple[str, int], list[float]]) -> Table:
    rows = tuple((count, median(of[Ours.name, count]), median(of[Loop.name, count])) for count in AT_ONCE)
    return Table(title, ("at once", Ours.name, Loop.name), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a whole ColQwen2.5 with current tensor names; a tiny random one if unset"
    )
    parser.add_argument("--pages", type=int, default=64, help="pages a round")
    parser.add_argument("--queries", type=int, default=256, help="queries a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index-pages", type=int, default=10_000, help="pages that are searched; 10,000 take 3.5 GB")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model or write_colqwen(Path(temporary) / "model", layout="current", true_pictures=True)
        measured = asyncio.run(measure(folder, arguments.pages, arguments.queries, arguments.rounds))
    searches = search(arguments.index_pages)
    publish(report(*measured, searches, arguments.index_pages), arguments.out)


if __name__ == "__main__":
    main()
