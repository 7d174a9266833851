"""Encoded bytes become one checked core Video: bounded, upright, RGB, and only the frames that are looked at.

The file is opened in a process of its own (`film.py` is what runs there), once for its header and once for its frames;
of a GIF the header is read here. What that process tells is not believed: all limits are held here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate
from typing import IO

from onsight.core.errors import InvalidMedia
from onsight.core.frames import FrameRule
from onsight.core.geometry import Size
from onsight.core.messages import Video, VideoOptions
from onsight.media.decode_child import MEMORY_BYTES, DecodeChild
from onsight.media.limits import MediaLimits
from onsight.media.verdict import Refused, Verdict
from onsight.media.video_files import VideoFormat, broken, read_gif_timing, video_format

_CODECS = frozenset(("h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "libdav1d"))
_READABLE = "send MP4, MOV, WebM (H.264, HEVC, MPEG-4, VP8, VP9 or AV1) or GIF"
_MOST_RATE = 1000.0


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


def read_clip(data: bytes, rule: FrameRule, options: VideoOptions, limits: MediaLimits, child: DecodeChild) -> Clip:
    """Read a video's header, hold it against the limits and pick the frames; none is decoded for it.

    Not for the event loop. Raises InvalidMedia for a file that cannot be read or is not allowed, InvalidRequest for
    impossible `options`.
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
    task = {"format": form, "max_pixels": limits.max_pixels, "decode_s": limits.video_decode_s}
    try:
        facts = child.facts("tell a film", task, data, limits.video_decode_s)
    except Refused as refused:
        raise _refusal(refused.verdict, limits) from None
    if facts["codec"] not in _CODECS:
        raise InvalidMedia(f"the video is coded as {facts['codec']}, which is not read; {_READABLE}")
    size, total, rate = Size(facts["width"], facts["height"]), facts["frames"], facts["rate"]
    if not (size.width and size.height and 0 < rate <= _MOST_RATE):
        raise broken()
    limits.check_size(size, "the video's frames are")
    _check_duration(total / rate, limits)
    picks = rule.pick(total, rate, options, limits.max_video_frames)
    return Clip(data, form, size, total / rate, rate, picks, tuple(pick / rate for pick in picks))


def decode_clip(clip: Clip, limits: MediaLimits, child: DecodeChild) -> Video:
    """Decode the frames that `read_clip` picked; not for the event loop. Raises InvalidMedia when it cannot be."""
    task: dict[str, object] = {
        "width": clip.size.width, "height": clip.size.height, "picks": clip.picks, "decode_s": limits.video_decode_s,
    }  # fmt: skip
    work = "draw a gif"
    if clip.format != "GIF":
        work, task = "draw a film", task | {"format": clip.format, "rate": clip.rate, "max_pixels": limits.max_pixels}
    digest = hashlib.sha256(f"video {clip.picks}:".encode())
    digest.update(clip.data)

    def read(answer: IO[bytes]) -> tuple[int, bytes]:
        turns = answer.read(1) if clip.format != "GIF" else b"\0"
        return sum(turns), answer.read(clip.pixels * 3)

    try:
        turns, pixels = child.ask(work, task, clip.data, limits.video_decode_s, read)
    except Refused as refused:
        raise _refusal(refused.verdict, limits, clip.duration_s) from None
    width, height = clip.size.width, clip.size.height
    if turns % 2:
        width, height = height, width
    return Video(pixels, width, height, clip.timestamps, clip.duration_s, digest.hexdigest())


def _check_duration(duration_s: float, limits: MediaLimits) -> None:
    if duration_s > limits.max_video_s:
        raise InvalidMedia(
            f"the video lasts {duration_s:.0f} s; the limit is {limits.max_video_s:g} s (media.max_video_s): cut it"
        )


def _refusal(verdict: Verdict, limits: MediaLimits, promised_s: float = 0.0) -> InvalidMedia:
    """The error for a video that was not opened. `promised_s`: how long it lasts by its header."""
    match verdict:
        case Verdict.EMPTY:
            return InvalidMedia("the video has no frames")
        case Verdict.STRANGE:
            return InvalidMedia(f"the video is coded as something unknown, which is not read; {_READABLE}")
        case Verdict.TURNED:
            return InvalidMedia("the video is turned by a part of a quarter turn; only quarter turns are read")
        case Verdict.SHORT:
            return InvalidMedia(
                f"the video's header promises {promised_s:.1f} s, but most of its frames are not there;"
                " save it again and resend"
            )
        case Verdict.SLOW:
            return InvalidMedia(
                f"decoding the video takes more than {limits.video_decode_s:g} s (media.video_decode_s);"
                " send a shorter or a smaller one"
            )
        case Verdict.LARGE:
            return InvalidMedia(
                f"decoding the video takes more than {MEMORY_BYTES >> 20} MB of memory; send a smaller one"
            )
        case _:
            return broken()
