"""Fuzzes the media door with mutated files of every format, and streamed answers with odd texts.

python -m tests.security.fuzz [--minutes N]: each of the two for N minutes. The first input of every outcome, and each
that breaks something, is kept in tests/security/corpus, which the default suite replays (test_fuzz.py); the figures go
to docs/results/fuzz.md.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import struct
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from benchmarks.report import commit
from onsight.core.errors import InvalidRequest, TooLarge
from onsight.core.generation import Event, Finished, GenerateRequest, TextDelta, Usage
from onsight.core.messages import ImageRef, VideoRef
from onsight.core.pages import Pages
from onsight.media.door import MediaDoor, MediaLimits
from onsight.media.video_files import video_format
from tests.api.conftest import CARD
from tests.api.finder import Finder
from tests.media.clips import EVERY_SECOND, clip, gif
from tests.media.papers import paper
from tests.media.pictures import encoded

CORPUS = Path(__file__).with_name("corpus")
RESULT = Path(__file__).parents[2] / "docs" / "results" / "fuzz.md"
OURS = re.compile(r"Traceback|PIL|Errno|ffmpeg|pdfium|\b0x[0-9a-f]{6,}\b(?! px)|/usr|/tmp|onsight\.|'<")
LIMITS = MediaLimits(max_pixels=1_000_000, max_video_pixels=3_000_000, video_decode_s=4, pdf_draw_s=4, decoded_bytes=0)
"""Small ones, so that a file that grows is refused soon."""
_KEPT_BYTES = 6000
_HEADER_BYTES = 160
_MARK_BYTES = 4
"""By which a file is told; without it nothing looks any further."""


def whole_files() -> dict[str, bytes]:
    """A small good file of every format."""
    grain = Pillow.effect_noise((24, 20), 80).convert("RGB")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    files = {
        form: encoded(grain, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    }
    files["progressive"] = encoded(grain, "JPEG", progressive=True)
    files["palette"] = encoded(grain.convert("P"), "PNG", transparency=3)
    files["lossless"] = encoded(grain.convert("RGBA"), "WEBP", lossless=True)
    files["lzw"] = encoded(grain, "TIFF", compression="tiff_lzw")
    files["moving"] = gif((100, 50, 200), (24, 20))
    files["MP4"], files["MOV"] = clip(frames=6, size=(32, 32)), clip("mov", "mpeg4", 6, size=(32, 32))
    files["WEBM"], files["PDF"] = clip("webm", "libvpx-vp9", 6, size=(32, 32)), paper()
    return files


MARKS = {
    "PNG": b"\x89PNG",
    "JPEG": b"\xff\xd8",
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": b"II*\0",
    "WebP": b"RIFF",
    "PDF": b"%PDF",
}
NUMBERS = tuple(
    struct.pack(form, value)
    for form in ("<I", ">I", "<H", ">H")
    for value in (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, *((0x7FFFFFFF, 0xFFFFFFFF) if form[1] == "I" else ()))
)
Edit = tuple[str, bool, int, bytes, int]


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    """`data` after every edit: what, whether in its head, where (of 10,000), bytes, how many. The mark stays."""
    for kind, in_head, where, piece, count in edits:
        reach = min(_HEADER_BYTES, len(data)) if in_head else len(data)
        place = _MARK_BYTES + (reach - _MARK_BYTES) * where // 10_000
        match kind:
            case "over":
                data = data[:place] + piece + data[place + len(piece) :]
            case "put":
                data = data[:place] + piece + data[place:]
            case "cut":
                data = data[:place] + data[place + count :]
            case "end":
                data = data[:place]
            case _:
                data = data[: place + count] + data[place:]
    return data


EDITS = st.lists(
    st.tuples(
        st.sampled_from(("over", "over", "over", "put", "cut", "end", "again")),
        st.booleans(),
        st.integers(0, 10_000),
        st.one_of(st.sampled_from(NUMBERS), st.binary(min_size=1, max_size=6)),
        st.integers(1, 200),
    ),
    min_size=1,
    max_size=5,
)
LINES = ("\n\n", "\r", "\r\n", "data: [DONE]\n\n", "\u2028", "\u2029", "\x00", "\x85", ": ", "event: x\n")
TEXTS = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.sampled_from(LINES)), max_size=12
)


async def show(door: MediaDoor, data: bytes) -> str:
    """How the door takes a file, as a picture or pages and, if it begins like one, as a video: what it is or why not.

    Raises whatever is not a clear refusal, AssertionError for a result that is not whole.
    """
    outcomes = []
    if video_format(data) not in ("MP4", "WEBM"):
        outcomes.append(await _outcome(_pictures(door, data)))
    if video_format(data) is not None:
        outcomes.append(await _outcome(_video(door, data)))
    return f"{_kind(data)}: {'; '.join(outcomes)}"


def _kind(data: bytes) -> str:
    """What a file begins like."""
    return next((name for name, mark in MARKS.items() if data[: len(mark)] == mark), video_format(data) or "other")


async def _outcome(opened: Awaitable[str]) -> str:
    try:
        return await opened
    except (InvalidRequest, TooLarge) as error:
        said = error.message
    assert OURS.search(said) is None, said
    assert len(said) < 400, said
    return re.sub(r"-?\d+x\d+|\b\d+(\.\d+)?\b", "N", said)


async def _pictures(door: MediaDoor, data: bytes) -> str:
    ((*images,),) = await door.open_pages([ImageRef(data, pages=Pages())])
    for image in images:
        assert len(image.pixels) == image.width * image.height * 3 <= 3 * LIMITS.max_pixels
    return "a picture" if images[0].page is None else "pages"


async def _video(door: MediaDoor, data: bytes) -> str:
    (video,) = await door.open_videos([VideoRef(data)], EVERY_SECOND)
    assert len(video.pixels) == len(video.timestamps) * video.width * video.height * 3
    return "a video"


@dataclass
class Sayer(Finder):
    """An engine that says the pieces that it is given."""

    pieces: tuple[str, ...] = ()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        for piece in self.pieces:
            yield TextDelta(piece)
        yield Finished("stop", Usage(1, len(self.pieces)))


def events_in(stream: str) -> list[tuple[str, str]]:
    """(name, data) of each event, as the standard says that a browser reads them (HTML, 9.2.6)."""
    found, name, data = [], "", list[str]()
    for line in re.split(r"\r\n|\n|\r", stream):
        if not line:
            if data:
                found.append((name, "\n".join(data)))
            name, data = "", []
            continue
        label, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if label == "data":
            data.append(value)
        elif label == "event":
            name = value
        else:
            raise AssertionError(f"a stranger's line: {line!r}")
    assert not data, "the last event does not end"
    return found


async def say(post: Callable[[str, object], object], engine: Sayer, pieces: list[str]) -> str:
    """Stream the pieces through every route that streams text; what a browser reads is what was said."""
    engine.pieces, whole = tuple(pieces), "".join(pieces)
    messages = [{"role": "user", "content": "x"}]
    chat = events_in((await post("/v1/chat/completions", {"messages": messages, "stream": True})).text)  # type: ignore[misc]
    assert chat[-1] == ("", "[DONE]")
    chunks = [json.loads(data) for _, data in chat[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == whole
    told = events_in((await post("/v1/responses", {"input": "x", "stream": True})).text)  # type: ignore[misc]
    read = [json.loads(data) for _, data in told]
    assert [one["type"] for one in read] == [name for name, _ in told]
    assert "".join(one["delta"] for one in read if one["type"] == "response.output_text.delta") == whole
    return f"{len(chunks)} chunks" if len(chunks) < 6 else "many chunks"


@dataclass
class Tally:
    """What came of one target. `first`: an input of each outcome. `broken`: what went wrong, and on which input."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first: dict[str, bytes] = field(default_factory=dict)
    broken: dict[str, bytes] = field(default_factory=dict)
    cases: int = 0
    seconds: float = 0.0


def fuzz(inputs: st.SearchStrategy[bytes], check: Callable[[bytes], str], minutes: float) -> Tally:
    """Try inputs until the time is over; one that breaks something is made small, and others are tried."""
    tally, began_s, turn = Tally(), time.monotonic(), int(time.time())
    while (time.monotonic() - began_s) < minutes * 60:
        turn += 1
        last = b""

        @seed(turn)
        @settings(
            max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False,
        )  # fmt: skip
        @given(inputs)
        def run(data: bytes) -> None:
            nonlocal last
            last = data
            outcome = check(data)
            tally.cases += 1
            tally.outcomes[outcome] += 1
            if len(data) <= _KEPT_BYTES:
                tally.first.setdefault(outcome, data)

        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever breaks is what is looked for
            tally.broken.setdefault(f"{type(error).__name__}: {error}"[:300], last)
    tally.seconds = time.monotonic() - began_s
    return tally


def files(seeds: dict[str, bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(mutated, st.sampled_from(sorted(seeds.values())), EDITS)


def as_input(pieces: list[str]) -> bytes:
    return json.dumps(pieces).encode()


def keep(folder: Path, tally: Tally) -> None:
    """Put what is worth replaying beside what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in (*tally.first.values(), *tally.broken.values()):
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def fuzz_media(minutes: float) -> Tally:
    door = MediaDoor(LIMITS)
    with asyncio.Runner() as runner:
        tally = fuzz(files(whole_files()), lambda data: runner.run(show(door, data)), minutes)
    door.close()
    return tally


def fuzz_streams(minutes: float) -> Tally:
    from tests.api.test_tasks import pair, square
    from tests.security.streams import post_to

    engine = Sayer("0..1000", square, pair)
    with asyncio.Runner() as runner:
        with post_to(engine, CARD) as post:
            return fuzz(TEXTS.map(as_input), lambda data: runner.run(say(post, engine, json.loads(data))), minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each of the two")
    minutes = parser.parse_args().minutes
    told = {}
    for name, work in (("media", fuzz_media), ("streams", fuzz_streams)):
        told[name] = work(minutes)
        keep(CORPUS / name, told[name])
    RESULT.write_text(written(told), "utf-8")


def written(told: dict[str, Tally]) -> str:
    """The figures as Markdown."""
    parts = [
        "# Fuzzing the media door and streamed answers",
        f"Written by `python -m tests.security.fuzz` at {commit()}, {datetime.now(UTC):%Y-%m-%d}. Inputs are mutated"
        " files of every format, and odd texts said by a model; each file must be opened or refused in clear words, and"
        " each stream must be read as it was said. Numbers in refusals are written N.",
        table(
            ("target", "minutes", "inputs", "outcomes", "broken"),
            [(name, f"{t.seconds / 60:.1f}", t.cases, len(t.outcomes), len(t.broken)) for name, t in told.items()],
        ),
    ]
    for name, tally in told.items():
        parts += [f"## {name}", table(("outcome", "inputs"), tally.outcomes.most_common())]
        if tally.broken:
            parts.append(table(("broken",), [(what.replace("\n", " "),) for what in tally.broken]))
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    lines += [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
