"""Pictures of odd sizes become the pixels and the tokens that the image processors make of them, at the true settings.

SmolVLM2-256M: up to 4 x 4 tiles of 512 px. Qwen2.5-VL: patches of 14 px, up to 12,845,056 px. Llama 3.2: up to 4 tiles
of 560 px. Phi-3.5-vision: up to 16 crops of 336 px. Only the layers are tiny, and they are not run here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import PIL.Image
import pytest

from onsight.core.messages import Image, ImageOptions
from onsight.media.limits import MediaLimits
from tests.engines.fidelity import FAMILIES, Tiny, note
from tests.engines.torch_engine.asking import difference
from tests.engines.torch_engine.conftest import GetTiny
from tests.engines.torch_engine.sizes import FEW, SIZES

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> GetTiny:
    """`true("qwen")` is that family with its published picture settings."""

    @cache
    def get(name: str) -> Tiny:
        kind = FAMILIES[name]
        return Tiny(name, kind, kind.write(tmp_path_factory.mktemp("true") / name, true_pictures=True))

    return get


def shape(width: int, height: int, options: ImageOptions | None = None) -> Image:
    """Solid shapes on a slope of grey, so that no two rows and no two columns of a picture are the same."""
    picture = PIL.Image.linear_gradient("L").rotate(30).resize((width, height)).convert("RGB")
    picture.paste((200, 30, 10), (width // 4, height // 3, width - width // 8, height - height // 5))
    picture.paste((10, 60, 220), (0, 0, width // 3, height // 2))
    return Image.of(picture.tobytes(), width, height, options or ImageOptions())


def compare(tiny: Tiny, size: tuple[int, int]) -> float:
    """The largest difference of any prepared pixel; tokens must be the same."""
    image = shape(*size)
    plan = tiny.family.plan(image)
    pixels, ids = tiny.reference.see(image)
    assert len(plan.token_ids) == len(ids)
    assert all(ours == theirs for ours, theirs in zip(plan.token_ids, ids, strict=True) if theirs >= 0)
    return difference(tiny.family.prepare(plan).values, pixels)


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_and_tokens_are_the_image_processors(name: str, true: GetTiny) -> None:
    assert max(compare(true(name), size) for size in FEW) == 0


@pytest.mark.slow
@pytest.mark.fidelity
@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_and_tokens_of_all_sizes_are_the_image_processors(
    name: str, true: GetTiny, record_property: Callable[[str, object], None]
) -> None:
    largest = max(compare(true(name), size) for size in SIZES)
    note(record_property, FAMILIES[name].title, "pixels of 30 sizes", largest)


def test_the_sizes_are_such_as_the_media_door_lets_in() -> None:
    limits = MediaLimits()
    assert len(set(SIZES)) == 30
    assert set(FEW) <= set(SIZES)
    for width, height in SIZES:
        assert min(width, height) >= limits.min_side
        assert max(width, height) <= limits.max_aspect * min(width, height)
        assert width * height <= limits.max_pixels


# Counts that others publish, for sizes that they name. 1300x876 is the stop sign of vLLM's image assets.
# Phi: vllm-project/vllm tests/models/multimodal/processing/test_phi3v.py (757 for 4 crops, 1921 for 16).
# Qwen: vllm-project/vllm tests/models/multimodal/processing/test_qwen2_vl.py (1426; 330 with 64**2 and 512**2 px).
# Llama: one <|image|> a picture (transformers' MllamaProcessor).
# SmolVLM2-256M and 500M: 64 features a tile, 4 x 4 tiles and the whole for anything square enough (17 x 64 = 1088),
# around each a border and a name, an end to each row (SmolVLMProcessor's get_image_prompt_string).
@pytest.mark.parametrize(
    ("name", "size", "options", "features"),
    [
        ("phi3", (1300, 876), ImageOptions(), 1921),
        ("qwen", (1300, 876), ImageOptions(), 1426),
        ("qwen", (1300, 876), ImageOptions(min_pixels=64**2, max_pixels=512**2), 330),
        ("qwen", (1920, 1080), ImageOptions(max_pixels=1_003_520), 1222),
        ("qwen", (3840, 2160), ImageOptions(), 10_549),
        ("mllama", (1300, 876), ImageOptions(), 1),
        ("smolvlm", (386, 386), ImageOptions(), 1088),
        ("smolvlm", (1920, 1080), ImageOptions(), 64 * 13),
        ("smolvlm", (1920, 1080), ImageOptions(detail="low"), 64),
    ],
)
def test_counts_of_features_are_those_that_others_publish(
    name: str, size: tuple[int, int], options: ImageOptions, features: int, true: GetTiny
) -> None:
    family = true(name).family
    ids = family.plan(Image.of(bytes(3 * size[0] * size[1]), *size, options)).token_ids
    mark = family.image_token_id
    assert (len(ids) if mark is None else ids.count(mark)) == features


def test_several_pictures_are_seen_by_phi_with_four_crops(true: GetTiny) -> None:
    assert len(true("phi3").family.plan(shape(1300, 876), among=2).token_ids) == 757


# The ids that stand for a small picture in the tiny models, spelled out: with torchvision missing, the whole processors
# cannot run here, and this is what transformers 5.23's would write (processing_smolvlm.py, processing_qwen2_5_vl.py,
# processing_mllama.py; for Phi the published processing_phi3_v.py, whose placeholder is -1).
STORED = {
    "smolvlm": "<fake_token_around_image><row_1_col_1>" + "<image>" * 4
    + "<fake_token_around_image><row_1_col_2>" + "<image>" * 4
    + "<fake_token_around_image><row_1_col_3>" + "<image>" * 4 + "\n"
    + "<fake_token_around_image><row_2_col_1>" + "<image>" * 4
    + "<fake_token_around_image><row_2_col_2>" + "<image>" * 4
    + "<fake_token_around_image><row_2_col_3>" + "<image>" * 4 + "\n\n"
    + "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>",
    "qwen": "<|image_pad|>" * (4 * 2),  # 2.5 patches are rounded to the even 2
    "mllama": "<|image|>",
    "phi3": "<|image|>" * ((4 * 3 + 1) * 4 + 1 + (3 + 1) * 2),
}  # fmt: skip


def test_the_ids_of_a_small_picture_are_as_stored(family: Tiny) -> None:
    stored = family.vocabulary.encode([(STORED[family.name], True)])
    assert list(family.family.plan(shape(112, 70)).token_ids) == stored
