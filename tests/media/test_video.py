"""Of a video only the frames that are looked at are decoded, upright and within every limit."""

from __future__ import annotations

import functools
import io
import struct
from contextlib import suppress

import av
import numpy
import pytest
from PIL import Image as Pillow

from onsight.core.errors import InvalidMedia, RequestError, TooLarge
from onsight.core.frames import FrameRule
from onsight.core.messages import Video, VideoOptions, VideoRef
from onsight.media.door import MediaDoor, MediaLimits
from tests.media.clips import EVERY_SECOND, IN_PAIRS, clip, drawn, gif
from tests.media.networks import Names, Network, reply
from tests.media.pictures import data_url, plain

FORMATS = [
    ("mp4", "libx264"), ("mp4", "mpeg4"), ("mov", "libx264"), ("webm", "libvpx-vp9"), ("webm", "libvpx"),
]  # fmt: skip


@functools.cache
def door(limits: MediaLimits | None) -> MediaDoor:
    """One for all tests with these limits: they share the process in which videos are opened."""
    return MediaDoor(limits)


async def watch(
    data: bytes | str, rule: FrameRule = EVERY_SECOND, limits: MediaLimits | None = None, **options: object
) -> Video:
    (video,) = await door(limits).open_videos([VideoRef(data, VideoOptions(**options), "here")], rule)  # type: ignore[arg-type]
    return video


async def refusal(data: bytes | str, limits: MediaLimits | None = None, **options: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await watch(data, EVERY_SECOND, limits, **options)
    assert caught.value.param == "here"
    return caught.value


def walked(data: bytes) -> list[bytes]:
    """Every frame of the file, decoded one after another."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


@pytest.mark.parametrize(("form", "codec"), FORMATS)
@pytest.mark.parametrize("gop", [1, 12, 250])
async def test_frames_gone_to_are_the_frames_of_a_walk(form: str, codec: str, gop: int) -> None:
    data = clip(form, codec, 90, gop=gop)
    every = walked(data)
    assert len(every) == 90
    for rule in (EVERY_SECOND, IN_PAIRS):
        for fps in (0.3, 1.0, 7.0, 10.0):
            video = await watch(data, rule, fps=fps)
            picks = rule.pick(90, 10.0, VideoOptions(fps), 128)
            assert video.timestamps == pytest.approx([pick / 10 for pick in picks])
            assert video.duration_s == pytest.approx(9.0)
            assert [bytes(frame) for frame in video.frames] == [every[pick] for pick in picks]


async def test_what_lies_between_the_frames_is_not_decoded() -> None:
    data = bytearray(clip("mp4", "mpeg4", 100, gop=10))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [
            (float(packet.pts * packet.time_base), packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.size
        ]
    for shown, place, size in packets:
        if 3.0 < shown < 6.9:
            data[place : place + size] = bytes(size)
    damaged = bytes(data)
    video = await watch(damaged, max_frames=2)
    assert video.timestamps == (1.0, 9.0)
    assert len(video.frames) == 2


@pytest.mark.parametrize(("turned", "turns"), [(90, 1), (180, 2), (-90, 3)])
async def test_a_turned_video_is_seen_upright(turned: int, turns: int) -> None:
    data = clip(turned=turned)
    video = await watch(data, fps=10.0)
    assert (video.width, video.height) == ((48, 64) if turns % 2 else (64, 48))
    for stored, seen in zip(walked(data), video.frames, strict=True):
        frame = numpy.frombuffer(stored, numpy.uint8).reshape(48, 64, 3)
        assert bytes(seen) == numpy.rot90(frame, turns).tobytes()


async def test_a_video_shot_upright_on_a_telephone_stands() -> None:
    """Its file's matrix turns it a quarter clockwise: (0 1 -1 0), where an unturned one's is (1 0 0 1)."""
    data = clip()
    one, minus = struct.pack(">i", 0x10000), struct.pack(">i", -0x10000)
    unturned = b"".join((one, bytes(12), one, bytes(12), b"\x40\0\0\0"))
    turned = b"".join((bytes(4), one, bytes(4), minus, bytes(16), b"\x40\0\0\0"))
    place = data.index(unturned, data.index(b"tkhd"))
    video = await watch(data[:place] + turned + data[place + 36 :])
    assert (video.width, video.height) == (48, 64)
    first = numpy.frombuffer(video.frames[0], numpy.uint8).reshape(64, 48, 3)
    # The square, in the lower right quarter of the stored frame, is in the lower left one of what is seen.
    assert first[40, 16, 0] > 150 > first[10, 16, 0]


async def test_uneven_times_show_what_a_player_shows() -> None:
    data = clip("webm", "libvpx-vp9", 6, times=[0, 1, 2, 3, 40, 80])
    every = walked(data)
    video = await watch(data, FrameRule(0.5, 64, "ends"))
    places = [every.index(bytes(frame)) for frame in video.frames]
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == 5


async def test_a_recording_without_a_duration_is_counted() -> None:
    source = clip("webm", "libvpx-vp9", 40)
    streamed = io.BytesIO()
    with av.open(io.BytesIO(source)) as before, av.open(streamed, "w", format="webm", options={"live": "1"}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    with av.open(io.BytesIO(streamed.getvalue())) as container:
        assert container.duration is None
    video = await watch(streamed.getvalue())
    assert video.duration_s == pytest.approx(4.0, abs=0.01)
    every = walked(source)
    assert [bytes(frame) for frame in video.frames] == [every[place] for place in (0, 13, 26, 39)]


async def test_a_gif_is_a_video_with_times_of_its_own() -> None:
    video = await watch(gif([200, 100, 300, 400]), FrameRule(100, 64, "ends"))
    assert video.timestamps == pytest.approx((0.0, 0.2, 0.3, 0.6))
    assert video.duration_s == pytest.approx(1.0)
    for place, frame in enumerate(video.frames):
        seen = numpy.frombuffer(frame, numpy.uint8).reshape(48, 64, 3).astype(int)
        assert abs(seen - drawn(place, 64, 48)).max() <= 8


async def test_a_gif_lies_on_white_and_never_runs_too_fast() -> None:
    frames = [Pillow.new("RGBA", (20, 10), (0, 0, 0, 0)), Pillow.new("RGBA", (20, 10), (0, 0, 255, 255))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=0, disposal=2)
    video = await watch(buffer.getvalue(), FrameRule(100, 64, "ends"))
    assert [bytes(frame[:3]) for frame in video.frames] == [b"\xff\xff\xff", b"\0\0\xff"]
    assert video.duration_s == pytest.approx(0.2)


async def test_the_digest_tells_file_and_frames_apart() -> None:
    data = clip()
    assert (await watch(data)).digest == (await watch(data_url(data, "video/mp4"))).digest
    assert (await watch(data)).digest == (await watch(data, fps=1.0)).digest
    others = {(await watch(data)).digest, (await watch(data, fps=2.0)).digest, (await watch(clip(frames=31))).digest}
    assert len(others) == 3


async def test_videos_are_fetched_by_url_like_pictures() -> None:
    data = clip()
    network = Network(reply(data, "Content-Type: video/mp4"))
    fetching = MediaDoor(resolver=Names(films_example=[["8.8.8.8"]]), network=network)
    (video,) = await fetching.open_videos([VideoRef("https://films.example/clip.mp4")], EVERY_SECOND)
    fetching.close()
    assert video.digest == (await watch(data)).digest


async def test_no_video_is_longer_larger_or_heavier_than_allowed() -> None:
    data = clip(frames=60)
    for limits, words in (
        (MediaLimits(max_video_s=5), "the video lasts 6 s; the limit is 5 s (media.max_video_s)"),
        (MediaLimits(max_pixels=3000), "frames are 64x48 px; the limit is 0.003 Mpx (media.max_pixels)"),
        (MediaLimits(max_video_pixels=9000), "the 6 frames to look at have 0.0 Mpx together; the limit is 0.009 Mpx"),
        (MediaLimits(video_decode_s=0), "takes more than 0 s (media.video_decode_s)"),
        (MediaLimits(max_videos=0), "the request has 1 videos; the limit is 0 (media.max_videos)"),
        (MediaLimits(min_side=50), "each side needs at least 50 px"),
        (MediaLimits(max_aspect=1.2), "at most 1.2 times the shorter"),
    ):
        error = await refusal(data, limits)
        assert isinstance(error, InvalidMedia)
        assert words in error.message
        assert error.code == "invalid_video"
    small = MediaLimits(max_video_bytes=1000)
    for source in (data, data_url(data, "video/mp4")):
        assert isinstance(await refusal(source, small), TooLarge)
    assert len((await watch(data, EVERY_SECOND, MediaLimits(max_video_frames=3))).frames) == 3
    assert await watch(data_url(data, "video/mp4"), EVERY_SECOND, MediaLimits(max_bytes=100)) == await watch(data)


async def test_a_gif_keeps_the_limits_too() -> None:
    data = gif()
    for limits, words in (
        (MediaLimits(max_video_s=1), "lasts 1 s"),
        (MediaLimits(max_pixels=3000), "64x48 px"),
        (MediaLimits(video_decode_s=0), "media.video_decode_s"),
    ):
        assert words in (await refusal(data, limits)).message


def patched(data: bytes, before: bytes, after: bytes) -> bytes:
    assert data.count(before) == 1
    return data.replace(before, after)


async def test_a_header_that_lies_about_the_size_opens_no_larger_frame() -> None:
    big = clip("webm", "libvpx-vp9", 3, size=(1280, 720))
    lying = patched(big, b"\xb0\x82\x05\x00\xba\x82\x02\xd0", b"\xb0\x82\x00\x40\xba\x82\x00\x30")
    error = await refusal(lying, MediaLimits(max_pixels=100_000))
    assert "cannot decode video" in error.message


async def test_a_header_that_promises_what_is_not_there_is_refused() -> None:
    data = clip("webm", "libvpx-vp9", 30)
    place = data.index(b"\x44\x89\x88") + 3  # the duration, in milliseconds, as a double
    lying = data[:place] + struct.pack(">d", 600_000.0) + data[place + 8 :]
    error = await refusal(lying)
    assert "promises 600.0 s, but most of its frames are not there" in error.message


async def test_three_hours_are_too_long_however_few_bytes_they_take() -> None:
    assert "lasts 10800 s" in (await refusal(clip("mp4", "mpeg4", 2, rate=1, times=[0, 10_799]))).message


def test_pictures_in_a_videos_container_are_not_taken_for_videos() -> None:
    from onsight.media.video_files import video_format

    assert video_format(b"\0\0\0\x18ftypheic" + bytes(20)) is None
    assert video_format(b"\0\0\0\x18ftypavif" + bytes(20)) is None
    assert video_format(b"\0\0\0\x18ftypqt  " + bytes(20)) == "MP4"
    assert video_format(clip("webm", "libvpx", 1)) == "WEBM"
    assert video_format(clip("matroska", "libx264", 1)) is None


def without_frames() -> bytes:
    """An MP4 with sound and no picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(numpy.zeros((1, 2048), numpy.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a video that can be read"),
        (plain(), "not a video that can be read"),
        (clip("matroska", "libx264"), "not a video that can be read"),
        (clip("avi", "mpeg4"), "not a video that can be read"),
        (clip()[:300], "cannot decode video"),
        (clip()[:-400], "cannot decode video"),
        (b"\0\0\0\x18ftypisom" + bytes(400), "cannot decode video"),
        (clip("mov", "mjpeg"), "the video is coded as mjpeg, which is not read"),
        (without_frames(), "has no frames"),
        (gif()[:200], "cannot decode video"),
        (gif()[:25] + b";", "has no frames"),
    ],
    ids=["empty", "picture", "mkv", "avi", "cut", "cut late", "junk", "codec", "sound", "cut gif", "empty gif"],
)
async def test_what_cannot_be_read_is_said_without_a_detail_of_ours(data: bytes, words: str) -> None:
    error = await refusal(data)
    assert words in error.message
    assert not any(inner in error.message for inner in ("av.", "Errno", "ffmpeg", "avcodec", "0x", "/"))


async def test_flipped_bits_never_break_anything_but_the_video() -> None:
    for form, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        data = clip(form, codec, 20)
        for start in range(0, len(data), max(1, len(data) // 60)):
            damaged = data[:start] + bytes(255 - byte for byte in data[start : start + 4]) + data[start + 4 :]
            with suppress(RequestError):
                video = await watch(damaged)
                assert len(video.pixels) == video.width * video.height * 3 * len(video.timestamps)


async def test_a_gif_whose_later_frame_leaves_its_canvas_is_refused() -> None:
    larger = b"\x2c" + struct.pack("<HHHHB", 0, 0, 30_000, 30_000, 0) + b"\x02\x02\x4c\x01\0;"
    assert "cannot decode video" in (await refusal(gif()[:-1] + larger)).message
