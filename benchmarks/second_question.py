"""The second question about a picture: how much sooner its answer begins than that of the first.

python -m benchmarks.second_question [--model FOLDER] [--trials N]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.client import Answer, ask, chat_body, connect, question
from benchmarks.endless import endless_copy
from benchmarks.report import Aim, Cell, Report, Table, median, publish, quantile
from benchmarks.screens import data_url, png, screens
from benchmarks.server import model_folder, onsight, running

FIRST, SECOND = "Read the screen.", "What colour is the largest button?"
TOKENS = 8
SLOTS = 8
WANTED_PERCENT = 35.0


@dataclass(frozen=True, slots=True)
class Trial:
    """Time to first token of both questions about one picture, in seconds."""

    first_s: float
    second_s: float


Pictures = Iterator[bytes]
Case = Callable[[httpx.AsyncClient, Pictures], Awaitable[Trial]]


async def picture_first(client: httpx.AsyncClient, pictures: Pictures) -> Trial:
    """Two conversations, picture before text."""
    picture = next(pictures)
    first = await ask(client, question(picture, FIRST, tokens=TOKENS))
    second = await ask(client, question(picture, SECOND, tokens=TOKENS))
    return Trial(first.first_s, second.first_s)


async def text_first(client: httpx.AsyncClient, pictures: Pictures) -> Trial:
    """Two conversations, text before picture: what was computed after the text cannot be used again."""
    picture = next(pictures)
    first = await ask(client, question(picture, FIRST, tokens=TOKENS, text_first=True))
    second = await ask(client, question(picture, SECOND, tokens=TOKENS, text_first=True))
    return Trial(first.first_s, second.first_s)


async def same_conversation(client: httpx.AsyncClient, pictures: Pictures) -> Trial:
    """One conversation: the second question comes after the first one's answer."""
    parts: list[object] = [
        {"type": "image_url", "image_url": {"url": data_url(next(pictures))}},
        {"type": "text", "text": FIRST},
    ]
    asked: dict[str, object] = {"role": "user", "content": parts}
    first = await ask(client, chat_body([asked], tokens=TOKENS))
    told: dict[str, object] = {"role": "assistant", "content": first.text or "."}
    again: dict[str, object] = {"role": "user", "content": SECOND}
    second = await ask(client, chat_body([asked, told, again], tokens=TOKENS))
    return Trial(first.first_s, second.first_s)


async def slots_retaken(client: httpx.AsyncClient, pictures: Pictures) -> Trial:
    """Between the two, as many other pictures as there are slots are asked about at once."""
    picture = next(pictures)
    first = await ask(client, question(picture, FIRST, tokens=TOKENS))
    await asyncio.gather(*(ask(client, question(next(pictures), FIRST, tokens=TOKENS)) for _ in range(SLOTS)))
    second = await ask(client, question(picture, SECOND, tokens=TOKENS))
    return Trial(first.first_s, second.first_s)


async def first_still_answered(client: httpx.AsyncClient, pictures: Pictures) -> Trial:
    """The second is asked while the first one's answer is still being written, so it runs in another slot."""
    picture = next(pictures)
    begun = asyncio.Event()
    first = asyncio.create_task(ask(client, question(picture, FIRST, tokens=16 * TOKENS), begun))
    await asyncio.wait({first, asyncio.create_task(begun.wait())}, return_when=asyncio.FIRST_COMPLETED)
    second = await ask(client, question(picture, SECOND, tokens=TOKENS))
    answer: Answer = await first
    return Trial(answer.first_s, second.first_s)


CASES: dict[str, Case] = {
    "picture before text": picture_first,
    "text before picture": text_first,
    "same conversation": same_conversation,
    f"{SLOTS} other pictures in between, in every slot": slots_retaken,
    "first answer still being written, another slot": first_still_answered,
}


async def measure(url: str, trials: int) -> dict[str, list[Trial]]:
    """The trials of every case, the cases taking turns; each trial with pictures that the server has never seen."""
    pictures = (png(screen) for screen in screens())
    measured: dict[str, list[Trial]] = {name: [] for name in CASES}
    async with connect(url, SLOTS) as client:
        for case in CASES.values():  # not counted: the first requests pay for lazy set-up
            await case(client, pictures)
        for _ in range(trials):
            for name, case in CASES.items():
                measured[name].append(await case(client, pictures))
    return measured


def report(measured: dict[str, list[Trial]], trials: int) -> Report:
    """One row and one aim a case."""
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, *_figures(done)) for name, done in measured.items())
    aims = tuple(
        Aim(f"second TTFT of the first, {name}", WANTED_PERCENT, _percent(done), "%") for name, done in measured.items()
    )
    columns = ("case", "first TTFT p50, ms", "second TTFT p50, ms", "second p95, ms", "ratio p50, %", "ratio p95, %")
    notes = (
        f"{trials} trials a case, the cases taking turns; every trial is about a screen of 256x256 px that the server"
        " has never seen, and the two questions differ. The ratio is taken within a trial.",
        "TTFT is the time from sending a request to the first text; both requests carry the picture as a data URL, so"
        " reading the request and decoding the PNG count in both.",
        "The model folder is a copy with the same weights in which no token ends an answer.",
    )
    details: dict[str, object] = {
        name: [(trial.first_s, trial.second_s) for trial in done] for name, done in measured.items()
    }
    title = "The second question about the same picture"
    return Report("second_question", title, aims, (Table("Figures", columns, rows),), notes, details)


def _percent(trials: list[Trial]) -> float:
    return median([100 * trial.second_s / trial.first_s for trial in trials])


def _figures(trials: list[Trial]) -> tuple[float, ...]:
    second_ms = [trial.second_s * 1000 for trial in trials]
    percents = [100 * trial.second_s / trial.first_s for trial in trials]
    return (
        median([trial.first_s * 1000 for trial in trials]),
        median(second_ms),
        quantile(second_ms, 0.95),
        median(percents),
        quantile(percents, 0.95),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="peek", help="a bundled model or the folder of a SmolVLM checkpoint")
    parser.add_argument("--trials", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = endless_copy(model_folder(arguments.model), Path(temporary) / "model")
        with running(onsight(str(folder), "--max-num-seqs", str(SLOTS)), Path(temporary)) as server:
            measured = asyncio.run(measure(server.url, arguments.trials))
    publish(report(measured, arguments.trials))


if __name__ == "__main__":
    main()
