"""Encoded bytes become one checked core Video: bounded, upright, RGB, and only the frames that are looked at.

Frames are gone to by time: what lies between two of them is decoded only from the last key frame on, and skipped
otherwise. MP4, MOV and WebM are read by FFmpeg, which is told the container and may open nothing else; GIF by Pillow.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import av
import numpy
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import GifImagePlugin as GifImagePlugin
from PIL import Image as Pillow

from onsight.core.errors import InvalidMedia
from onsight.core.frames import FrameRule
from onsight.core.geometry import Size
from onsight.core.messages import Video, VideoOptions
from onsight.media.limits import MediaLimits
from onsight.media.video_files import VideoFormat, broken, read_gif_timing, video_format

_log = logging.getLogger(__name__)

_DEMUXERS: dict[VideoFormat, str] = {"MP4": "mov", "WEBM": "matroska"}
_CODECS = frozenset(("h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "libdav1d"))
_READABLE = "send MP4, MOV, WebM (H.264, HEVC, MPEG-4, VP8, VP9 or AV1) or GIF"
_MOST_RATE = 1000.0
_SEEKS = 4

Pixels = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file whose header has been read and allowed.

    `size`: px as stored. `duration_s`: of the whole. `picks`: indices of the frames to look at; `timestamps`: when
    each is shown (s). `rate`: frames a second, on average.
    """

    data: bytes
    format: VideoFormat
    size: Size
    duration_s: float
    rate: float
    picks: tuple[int, ...]
    timestamps: tuple[float, ...]

    @property
    def pixels(self) -> int:
        """Of all frames that will be looked at."""
        return self.size.width * self.size.height * len(self.picks)


def read_clip(data: bytes, rule: FrameRule, options: VideoOptions, limits: MediaLimits) -> Clip:
    """Read a video's header, hold it against the limits and pick the frames; none is decoded for it.

    Raises InvalidMedia for a file that cannot be read or is not allowed, InvalidRequest for impossible `options`.
    """
    form = video_format(data)
    if form is None:
        raise InvalidMedia(f"this is not a video that can be read; {_READABLE}")
    if form == "GIF":
        timing = read_gif_timing(data)
        limits.check_size(timing.size, "the video's frames are")
        ends_s = tuple(accumulate(timing.delays_s))
        _check_duration(ends_s[-1], limits)
        rate = len(ends_s) / ends_s[-1]
        picks = rule.pick(len(ends_s), rate, options, limits.max_video_frames)
        return Clip(data, form, timing.size, ends_s[-1], rate, picks, tuple((0.0, *ends_s)[pick] for pick in picks))
    with _Decoding(form), _opened(data, form, limits) as container:
        stream = _stream(container)
        size = Size(stream.codec_context.width, stream.codec_context.height)
        if not (size.width and size.height):
            raise broken()
        limits.check_size(size, "the video's frames are")
        total, rate = _count(container, stream, limits)
    _check_duration(total / rate, limits)
    picks = rule.pick(total, rate, options, limits.max_video_frames)
    return Clip(data, form, size, total / rate, rate, picks, tuple(pick / rate for pick in picks))


def decode_clip(clip: Clip, limits: MediaLimits) -> Video:
    """Decode the frames that `read_clip` picked; not for the event loop. Raises InvalidMedia when it cannot be."""
    digest = hashlib.sha256(f"video {clip.picks}:".encode())
    digest.update(clip.data)
    pixels = io.BytesIO()
    size: Size | None = None
    with _Decoding(clip.format):
        for frame in _gif_frames(clip, limits) if clip.format == "GIF" else _film_frames(clip, limits):
            found = Size(frame.shape[1], frame.shape[0])
            if size not in (None, found):
                raise broken()
            size = found
            pixels.write(frame.tobytes())
    if size is None:
        raise InvalidMedia("the video has no frames")
    return Video(pixels.getvalue(), size.width, size.height, clip.timestamps, clip.duration_s, digest.hexdigest())


class _Decoding:
    """Turns whatever a decoder raises in its block into our one error."""

    def __init__(self, form: VideoFormat) -> None:
        self._form = form

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InvalidMedia):
            _log.info("the %s decoder refused a video: %s", self._form, type(error).__name__)
            raise broken() from None


class _Clock:
    """Counts the processor time that decoding takes, so that a busy machine refuses no honest video."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limit_s = limits.video_decode_s
        self._until_s = time.thread_time() + self._limit_s

    def check(self) -> None:
        if time.thread_time() > self._until_s:
            raise InvalidMedia(
                f"decoding the video takes more than {self._limit_s:g} s (media.video_decode_s);"
                " send a shorter or a smaller one"
            )


def _check_duration(duration_s: float, limits: MediaLimits) -> None:
    if duration_s > limits.max_video_s:
        raise InvalidMedia(
            f"the video lasts {duration_s:.0f} s; the limit is {limits.max_video_s:g} s (media.max_video_s): cut it"
        )


def _opened(data: bytes, form: VideoFormat, limits: MediaLimits) -> InputContainer:
    """The container, with a decoder that refuses a frame larger than the limit, whatever the header says."""
    return av.open(
        io.BytesIO(data),
        mode="r",
        format=_DEMUXERS[form],
        options={"max_pixels": str(limits.max_pixels), "enable_drefs": "0"},
        io_open=_open_nothing,
    )


def _open_nothing(*_: object) -> None:
    """What FFmpeg calls for a second file that the first one names."""
    raise broken()


def _stream(container: InputContainer) -> VideoStream:
    """The video among the streams. Raises InvalidMedia when there is none that is read."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise InvalidMedia("the video has no frames")
    codec = stream.codec_context.name if stream.codec_context else "something unknown"
    if codec not in _CODECS:
        raise InvalidMedia(f"the video is coded as {codec}, which is not read; {_READABLE}")
    return stream


def _count(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> tuple[int, float]:
    """(frames, frames a second) by the header, or by the packets where the header says nothing; none is decoded."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    else:
        duration_s = (container.duration or 0) / av.time_base
    total = stream.frames or round(duration_s * rate)
    if total <= 0 or rate <= 0:
        total, rate = _count_packets(container, stream, _Clock(limits))
    if not 0 < rate <= _MOST_RATE:
        raise broken()
    return total, rate


def _count_packets(container: InputContainer, stream: VideoStream, clock: _Clock) -> tuple[int, float]:
    """The same from the packets' times: recorders that stream leave the header empty."""
    times: list[int] = []
    for packet in container.demux(stream):
        clock.check()
        if packet.pts is not None:
            times.append(packet.pts)
    if not times or stream.time_base is None:
        raise InvalidMedia("the video has no frames")
    if len(times) == 1:
        return 1, 1.0
    return len(times), (len(times) - 1) / max(1e-6, float((max(times) - min(times)) * stream.time_base))


def _film_frames(clip: Clip, limits: MediaLimits) -> Iterator[Pixels]:
    """The picked frames of an MP4, MOV or WebM, upright, [height, width, 3] each."""
    clock = _Clock(limits)
    with _opened(clip.data, clip.format, limits) as ahead, _opened(clip.data, clip.format, limits) as container:
        stream = _stream(container)
        # One thread: what the clock counts is then all of it, and one video takes one processor.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        if stream.time_base is None:
            raise broken()
        begins = stream.start_time or 0
        # Half a frame early: times are rounded to the container's ticks, and a frame must not be missed by one.
        targets = [begins + int((pick - 0.5) / clip.rate / stream.time_base) for pick in clip.picks]
        reached = 0
        for frame, whole in _frames_from(_Films(ahead, container, stream), targets, clock):
            reached += whole
            yield _upright(frame, clip.size)
        if reached * 2 < len(targets):
            raise InvalidMedia(
                f"the video's header promises {clip.duration_s:.1f} s, but most of its frames are not there;"
                " save it again and resend"
            )


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
                raise broken()
            else:
                frame, shown = found, found.pts
        if frame is None or shown is None:
            raise InvalidMedia("the video has no frames")
        yield frame, shown >= target


def _upright(frame: VideoFrame, size: Size) -> Pixels:
    """[height, width, 3], turned as the file says that it is to be shown."""
    # The caps were held against the header; frames of another size must not get past them.
    if (frame.width, frame.height) != (size.width, size.height):
        raise broken()
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise InvalidMedia(f"the video is turned by {frame.rotation} degrees; only quarter turns are read")
    pixels: Pixels = numpy.rot90(frame.to_ndarray(format="rgb24"), turns)
    return pixels


def _gif_frames(clip: Clip, limits: MediaLimits) -> Iterator[Pixels]:
    """The picked frames of a GIF on white, [height, width, 3] each; each is drawn over the ones before it."""
    clock = _Clock(limits)
    wanted = frozenset(clip.picks)
    with Pillow.open(io.BytesIO(clip.data), formats=("GIF",)) as picture:
        for place in range(clip.picks[-1] + 1):
            clock.check()
            picture.seek(place)
            if picture.size != (clip.size.width, clip.size.height):
                raise broken()
            if place in wanted:
                seen = picture.convert("RGBA")
                white = Pillow.new("RGBA", seen.size, "white")
                yield numpy.asarray(Pillow.alpha_composite(white, seen).convert("RGB"))
