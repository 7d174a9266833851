"""What FFmpeg and Pillow are asked about a video, in the process that `decode_process.py` makes for each look at one.

Frames are gone to by time: what lies between two of them is decoded only from the last key frame on, and skipped
otherwise. MP4, MOV and WebM are read by FFmpeg, which is told the container and may open nothing else; GIF by Pillow.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypedDict

import av
import numpy
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import GifImagePlugin as GifImagePlugin
from PIL import Image as Pillow

from onsight.media.verdict import Refused, Verdict

_DEMUXERS = {"MP4": "mov", "WEBM": "matroska"}
_SEEKS = 4


class FilmTask(TypedDict):
    """`max_pixels`: px of the largest frame that is decoded, whatever the header says. `decode_s`: seconds that it
    all may take."""

    format: Literal["MP4", "WEBM"]
    max_pixels: int
    decode_s: float


class FramesTask(TypedDict):
    """`width`, `height`: px of a frame as it is stored. `picks`: indices of the frames to draw."""

    width: int
    height: int
    picks: list[int]
    decode_s: float


class FilmFramesTask(FilmTask, FramesTask):
    """`rate`: frames a second, on average."""

    rate: float


class FilmFacts(TypedDict):
    """`frames` and `rate` (frames a second): by the header, or by the packets where it says nothing."""

    codec: str
    width: int
    height: int
    frames: int
    rate: float


def tell_film(task: FilmTask, data: bytes, out: BinaryIO) -> None:
    """`FilmFacts` as JSON; no frame is decoded for it."""
    with _opened(task, data) as container:
        stream = _stream(container)
        context = stream.codec_context
        if not context:
            raise Refused(Verdict.STRANGE)
        total, rate = _count(container, stream, _Clock(task["decode_s"]))
        facts = FilmFacts(codec=context.name, width=context.width, height=context.height, frames=total, rate=rate)
        out.write(json.dumps(facts).encode())


def draw_film(task: FilmFramesTask, data: bytes, out: BinaryIO) -> None:
    """A byte that says by how many quarter turns counter-clockwise the frames were turned to be upright, and the picked
    frames, RGB, 8 bits a channel, row by row."""
    clock = _Clock(task["decode_s"])
    with _opened(task, data) as ahead, _opened(task, data) as container:
        stream = _stream(container)
        # One thread: what the clock counts is then all of it, and one video takes one processor.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(task["max_pixels"])}
        if stream.time_base is None:
            raise Refused(Verdict.BROKEN)
        begins = stream.start_time or 0
        # Half a frame early: times are rounded to the container's ticks, and a frame must not be missed by one.
        targets = [begins + int((pick - 0.5) / task["rate"] / stream.time_base) for pick in task["picks"]]
        reached, turned = 0, -1
        for frame, whole in _frames_from(_Films(ahead, container, stream), targets, clock):
            reached += whole
            turns = _quarter_turns(frame, task)
            if turned < 0:
                turned = turns
                out.write(bytes([turned]))
            if turns != turned:
                raise Refused(Verdict.BROKEN)
            pixels = frame.to_ndarray(format="rgb24")
            out.write(numpy.ascontiguousarray(numpy.rot90(pixels, turns)).data)
        if reached * 2 < len(targets):
            raise Refused(Verdict.SHORT)


def draw_gif(task: FramesTask, data: bytes, out: BinaryIO) -> None:
    """The picked frames on white, as `draw_film` writes them; each is drawn over the ones before it."""
    clock = _Clock(task["decode_s"])
    wanted = frozenset(task["picks"])
    with Pillow.open(io.BytesIO(data), formats=("GIF",)) as picture:
        for place in range(task["picks"][-1] + 1):
            clock.check()
            picture.seek(place)
            if picture.size != (task["width"], task["height"]):
                raise Refused(Verdict.BROKEN)
            if place in wanted:
                seen = picture.convert("RGBA")
                white = Pillow.new("RGBA", seen.size, "white")
                out.write(Pillow.alpha_composite(white, seen).convert("RGB").tobytes())


class _Clock:
    """Counts the processor time that decoding takes, so that a busy machine refuses no honest video."""

    def __init__(self, limit_s: float) -> None:
        self._until_s = time.process_time() + limit_s

    def check(self) -> None:
        if time.process_time() > self._until_s:
            raise Refused(Verdict.SLOW)


def _opened(task: FilmTask, data: bytes) -> InputContainer:
    """The container, with a decoder that refuses a frame larger than the limit, whatever the header says."""
    return av.open(
        io.BytesIO(data),
        mode="r",
        format=_DEMUXERS[task["format"]],
        options={"max_pixels": str(task["max_pixels"]), "enable_drefs": "0"},
        io_open=_open_nothing,
    )


def _open_nothing(*_: object) -> None:
    """What FFmpeg calls for a second file that the first one names."""
    raise Refused(Verdict.BROKEN)


def _stream(container: InputContainer) -> VideoStream:
    """The video among the streams."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise Refused(Verdict.EMPTY)
    return stream


def _count(container: InputContainer, stream: VideoStream, clock: _Clock) -> tuple[int, float]:
    """(frames, frames a second) by the header, or by the packets where the header says nothing; none is decoded."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    else:
        duration_s = (container.duration or 0) / av.time_base
    total = stream.frames or round(duration_s * rate)
    if total <= 0 or rate <= 0:
        total, rate = _count_packets(container, stream, clock)
    return total, rate


def _count_packets(container: InputContainer, stream: VideoStream, clock: _Clock) -> tuple[int, float]:
    """The same from the packets' times: recorders that stream leave the header empty."""
    times: list[int] = []
    for packet in container.demux(stream):
        clock.check()
        if packet.pts is not None:
            times.append(packet.pts)
    if not times or stream.time_base is None:
        raise Refused(Verdict.EMPTY)
    if len(times) == 1:
        return 1, 1.0
    return len(times), (len(times) - 1) / max(1e-6, float((max(times) - min(times)) * stream.time_base))


@dataclass(frozen=True, slots=True)
class _Films:
    """One video opened twice: `ahead` looks for key frames, so that `container` seeks only when that saves decoding."""

    ahead: InputContainer
    container: InputContainer
    stream: VideoStream

    def key_before(self, target: int) -> tuple[int, int] | None:
        """(where to seek, the time of the key frame found there), the last one that is shown no later than `target`."""
        looking = _stream(self.ahead)
        place = target
        for _ in range(_SEEKS):
            self.ahead.seek(place, stream=looking)
            packet = next(self.ahead.demux(looking), None)
            if packet is None or packet.pts is None:
                return None
            if packet.pts <= target:
                return place, packet.pts
            # Found by when it is decoded, which is before it is shown: the one before is wanted.
            place = min(packet.pts, packet.pts if packet.dts is None else packet.dts) - 1
        return None


def _frames_from(films: _Films, targets: Sequence[int], clock: _Clock) -> Iterator[tuple[VideoFrame, bool]]:
    """For each of the ascending `targets` (ticks) the first frame from there on, and True; past the end the last one,
    which players go on showing, and False."""
    frames = films.container.decode(films.stream)
    frame: VideoFrame | None = None
    shown: int | None = None
    ended = False
    for target in targets:
        if not ended and (shown is None or shown < target):
            key = films.key_before(target)
            if key is not None and (shown is None or key[1] > shown):
                films.container.seek(key[0], stream=films.stream)
                frames = films.container.decode(films.stream)
        while not ended and (shown is None or shown < target):
            clock.check()
            found = next(frames, None)
            if found is None:
                ended = True
            elif found.pts is None or found.is_corrupt:
                raise Refused(Verdict.BROKEN)
            else:
                frame, shown = found, found.pts
        if frame is None or shown is None:
            raise Refused(Verdict.EMPTY)
        yield frame, shown >= target


def _quarter_turns(frame: VideoFrame, task: FramesTask) -> int:
    """How often to turn it counter-clockwise, as the file says that it is to be shown."""
    # The caps were held against the header; frames of another size must not get past them.
    if (frame.width, frame.height) != (task["width"], task["height"]):
        raise Refused(Verdict.BROKEN)
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise Refused(Verdict.TURNED)
    return turns % 4
