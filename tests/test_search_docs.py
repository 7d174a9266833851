"""The commands of docs/search.md run as they stand, one after the other, on a folder of pages."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import httpx
import numpy
import pytest
from PIL import Image

from tests.cli.conftest import RunCommand
from tests.cli.conftest import run as run
from tests.embedders import served_embedder
from tests.media import pictures
from training.evaluate_leaf import FIRST_SEED, STYLE
from training.leaf import LEAF
from training.pages import draw_page

pytestmark = pytest.mark.model

DOCUMENT = Path(__file__).parents[1] / "docs" / "search.md"
COMMANDS = re.findall(r"^\$ onsight (.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)


def test_each_command_does_what_it_says(run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_client", reason="needs the extra `search`")
    (tmp_path / "pages").mkdir()
    for number in (5, 8):
        draw_page(FIRST_SEED + 50_000 + number, STYLE).image.save(tmp_path / "pages" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        done = run(*shlex.split(command))
        assert done.code == 0, f"{command}: {done.err}"
        if command.startswith("search"):
            assert "8.png" in done.out.splitlines()[0]
    made = sorted(str(file.relative_to(tmp_path)) for file in [*tmp_path.glob("*"), *tmp_path.glob("found/*")])
    assert made == sorted(
        ["found", "found/1-8.png", "found/2-5.png", "onsight-index", "pages", "pages.npz", "pages.parquet"]
    )


def part(picture: Image.Image) -> dict[str, object]:
    """A part with the picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": pictures.data_url(file.getvalue())}}


def test_raw_bytes_are_read_as_it_says() -> None:
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[0]
    page = part(draw_page(FIRST_SEED, STYLE).image)
    found: dict[str, object] = {"httpx": httpx, "json": json, "numpy": numpy, "page": page}
    with served_embedder(LEAF) as url:
        exec(code, {**found, "url": url}, found)
        answer = httpx.post(url + "/v1/embeddings", json={"input": [page]}, timeout=60).json()
        described = httpx.get(url + "/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["responses"]["200"]
    exact = numpy.array(answer["data"][0]["embedding"])
    assert found["vectors"].shape == exact.shape  # type: ignore[attr-defined]
    assert numpy.abs(found["vectors"] - exact).max() <= 0.5 / 127 + 1e-6
    content = described["content"]
    assert set(content) == {"application/json", "application/octet-stream", "application/x-ndjson"}
    assert "little-endian" in content["application/octet-stream"]["schema"]["description"]
    assert [one["$ref"].rpartition("/")[2] for one in content["application/x-ndjson"]["schema"]["oneOf"]] == [
        "EmbeddingObject",
        "RefusedObject",
        "EmbeddingsEnd",
    ]
