"""Small video files, honest and hostile, for the tests of whatever sees videos: a square that moves over a ground."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy
from PIL import Image as Pillow

from onsight.core.frames import FrameRule

EVERY_SECOND = FrameRule(1.0, 64, "ends", skip_s=1.0)
IN_PAIRS = FrameRule(2.0, 768, "starts", min_frames=4, multiple=2)
RED, BLUE = (200, 0, 0), (0, 0, 220)


def drawn(place: int, width: int, height: int, colour: tuple[int, int, int] = RED) -> numpy.ndarray:
    """Frame `place`: a grey that tells its number (4 a frame, wrapping), with a square in the lower right half."""
    frame = numpy.full((height, width, 3), place * 4 % 240, numpy.uint8)
    left = width // 2 + place % max(1, width // 4)
    frame[height // 2 : height * 3 // 4, left : left + width // 4] = colour
    return frame


def clip(
    form: str = "mp4", codec: str = "libx264", frames: int = 30, *, rate: int = 10, size: tuple[int, int] = (64, 48),
    colour: tuple[int, int, int] = RED, gop: int = 12, turned: int = 0, times: Sequence[int] | None = None,
) -> bytes:  # fmt: skip
    """A file of `drawn` frames. `turned`: degrees counter-clockwise to show it at; `times`: each frame's, in ticks."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1  # with several the same frames give other bytes each time
        stream.codec_context.time_base = Fraction(1, rate)
        if turned:
            stream.set_display_rotation(turned)
        for place in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(place, *size, colour), format="rgb24")
            frame.pts = place if times is None else times[place]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def gif(delays_ms: Sequence[int] = (100,) * 12, size: tuple[int, int] = (64, 48)) -> bytes:
    """An animated GIF of `drawn` frames."""
    first, *rest = (Pillow.fromarray(drawn(place, *size)) for place in range(len(delays_ms)))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=list(delays_ms), loop=0)
    return buffer.getvalue()


def number(frame: memoryview | bytes) -> int:
    """Which frame (of the first sixty) this is, by the grey of its first pixel."""
    return round(frame[0] / 4)
