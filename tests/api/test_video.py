"""Videos over the public API: seen by models that can, counted, and refused with a reason where they are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.api.conftest import Bench, user
from tests.media.clips import EVERY_SECOND, IN_PAIRS, clip, gif
from tests.media.pictures import data_url, plain

MP4 = clip(frames=50)
TEXT = {"type": "text", "text": "look"}


def film(data: bytes = MP4, media_type: str = "video/mp4", **options: object) -> dict[str, object]:
    return {"type": "video_url", "video_url": {"url": data_url(data, media_type), **options}}


async def test_a_video_is_seen_and_counted(build: Callable[..., Bench]) -> None:
    bench = build(frames=EVERY_SECOND)
    picture = {"type": "image_url", "image_url": {"url": data_url(plain())}}
    answer = (await bench.chat(messages=user(film(), picture, TEXT))).json()
    assert answer["choices"][0]["message"]["content"].startswith("fake engine: look [64x48x5] [20x10]")
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 16, "video_tokens": 80}
    assert (bench.records[0].images, bench.records[0].videos, bench.records[0].video_tokens) == (1, 1, 80)
    assert b'onsight_videos_total{model_name="fake"} 1.0' in bench.metrics.render()


@pytest.mark.parametrize(
    ("options", "frames"), [({"fps": 2}, 10), ({"fps": 0.5}, 2), ({"max_frames": 3}, 3), ({"fps": 10.0}, 50)]
)
async def test_a_request_chooses_its_frames(
    build: Callable[..., Bench], options: dict[str, object], frames: int
) -> None:
    answer = (await build(frames=EVERY_SECOND).chat(messages=user(film(**options)))).json()
    assert f"[64x48x{frames}]" in answer["choices"][0]["message"]["content"]


async def test_a_bare_url_and_a_gif_are_videos_too(build: Callable[..., Bench]) -> None:
    bench = build(frames=IN_PAIRS)
    for part in (
        {"type": "video_url", "video_url": data_url(MP4, "video/mp4")},
        film(gif(), "image/gif"),
        film(clip("webm", "libvpx-vp9"), "application/octet-stream"),
    ):
        assert (await bench.chat(messages=user(part))).status_code == 200


@pytest.mark.parametrize(
    ("part", "words", "code"),
    [
        (film(b"nonsense" * 9), "not a video that can be read", "invalid_video"),
        (film(plain()), "not a video that can be read", "invalid_video"),
        (film(MP4[: len(MP4) // 2]), "cannot decode video", "invalid_video"),
        (film(MP4, "image/png"), "does not say that it holds a video", "invalid_video"),
        (film(max_frames=500), "max_frames is 500; this server looks at 128 frames at most", "invalid_request"),
        (film(max_frames=1), "max_frames is 1; this model needs at least 2", "invalid_request"),
        ({"type": "video_url", "video_url": "clip.mp4"}, "the video is not a URL", "invalid_video"),
        ({"type": "video_url", "video_url": "file:///clip.mp4"}, "file: URLs are not read", "invalid_video"),
        ({"type": "video_url", "video_url": "http://127.0.0.1/x.mp4"}, "not a public host", "invalid_video"),
    ],
)
async def test_a_wrong_video_is_a_clear_400(
    build: Callable[..., Bench], part: dict[str, object], words: str, code: str
) -> None:
    bench = build(frames=IN_PAIRS)
    response = await bench.chat(messages=user(TEXT, part))
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert words in error["message"]
    assert (error["param"], error["code"]) == ("messages.0.content.1.video_url", code)
    assert bench.admission.taken == 0


async def test_models_say_whether_they_see_videos(bench: Bench) -> None:
    from onsight.models.card import cards

    seeing = {card.name for card in cards() if "video" in card.capabilities}
    assert seeing == {"smolvlm2", "holo1_5", "qwen2_5_vl"} == {card.name for card in cards() if card.frames}
    assert "video" not in (await bench.get("/v1/models")).json()["data"][0]["capabilities"]
