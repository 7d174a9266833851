"""/v1/embeddings, /v1/score and /v1/rerank over a real server: every form of the same vectors, and bad input."""

from __future__ import annotations

import base64
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy
import openai
import pytest
import torch

from onsight.api.vectors.wire import RerankRequest, ScoreRequest, Vectors
from onsight.engines.torch_engine.families.colqwen import ColQwen
from onsight.tasks.embed import Embed, ScoreCall, Scores
from tests.embedders import png, served_embedder
from tests.engines.torch_engine.embedding import ASKED, BLUE, GREEN, RED, embed, farthest, load, vectors
from tests.media import pictures
from tests.media.papers import encrypted, paper, with_bad_pages
from tests.media.pictures import data_url
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import draw

pytestmark = pytest.mark.model

EXACT = 1e-5
PAGES = [draw(RED, 90, 60), draw(BLUE, 300, 40), draw(GREEN, 120, 200)]
URLS = [data_url(png(page)) for page in PAGES]
BROKEN = data_url(b"no picture")
PADDED_WITHIN = "A" * ((1 << 18) - 2) + "==AAAA"
HUGE = data_url(pictures.png((30_000, 30_000, 8, 2), b""))


def part(url: str, **options: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **options}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colqwen(tmp_path_factory.mktemp("models") / "colqwen")


@pytest.fixture(scope="module")
def model(folder: Path) -> ColQwen:
    return load(folder)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served_embedder(folder) as address:
        yield address


class Asking:
    """Posts to one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def embed(self, *inputs: object, **fields: object) -> dict[str, object]:
        answer = self.post("/v1/embeddings", {"input": list(inputs), **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refusal(self, path: str, body: object, **headers: str) -> dict[str, object]:
        answer = self.post(path, body, **headers)
        assert answer.status_code == 400, answer.text
        return dict(answer.json()["error"])


@pytest.fixture
def asking(url: str) -> Asking:
    return Asking(url)


def floats(item: dict[str, object]) -> torch.Tensor:
    return torch.tensor(item["embedding"])


def test_texts_are_queries_and_pictures_are_pages(asking: Asking, model: ColQwen) -> None:
    answer = asking.embed("What colour?", part(URLS[0]), {"type": "text", "text": "a"}, {"image": URLS[1]})
    assert (answer["object"], answer["model"]) == ("list", "pages")
    expected = embed(model, "What colour?", PAGES[0], "a", PAGES[1])
    data = answer["data"]
    assert [one["index"] for one in data] == [0, 1, 2, 3]  # type: ignore[index, attr-defined]
    for one, made, page in zip(data, expected, (None, PAGES[0], None, PAGES[1]), strict=True):  # type: ignore[call-overload]
        assert one["object"] == "embedding"
        assert one["shape"] == [made.rows, 128]
        assert farthest(made, floats(one)) <= EXACT
        if page is None:
            assert one["image"] is None
            continue
        columns, rows = model.n_patches(page.width, page.height)
        assert one["image"] == {
            "start": made.image.start,
            "length": columns * rows,
            "columns": columns,
            "width": page.width,
            "height": page.height,
        }
    tokens, image_tokens = sum(one.rows for one in expected), sum(one.image.length for one in expected)
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "prompt_tokens_details": {"image_tokens": image_tokens},
    }


def test_one_text_alone_and_one_message_are_inputs_too(asking: Asking, model: ColQwen) -> None:
    alone = asking.post("/v1/embeddings", {"input": "What colour?"}).json()
    assert farthest(embed(model, "What colour?")[0], floats(alone["data"][0])) <= EXACT
    message = {"role": "user", "content": [part(URLS[0])]}
    told = asking.post("/v1/embeddings", {"messages": [message], "model": "pages"}).json()
    assert farthest(embed(model, PAGES[0])[0], floats(told["data"][0])) <= EXACT


def test_openais_own_client_reads_the_answer(url: str, model: ColQwen) -> None:
    with openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
        answer = client.embeddings.create(model="pages", input=["What colour?", "a"])
    for one, text in zip(answer.data, ["What colour?", "a"], strict=True):
        rows, dims = one.shape  # type: ignore[attr-defined]
        assert farthest(embed(model, text)[0], torch.tensor(one.embedding).view(rows, dims)) <= EXACT


def test_one_alone_and_sixteen_of_mixed_sizes_are_the_same(asking: Asking) -> None:
    sizes = [(64, 48), (300, 40), (90, 200), (500, 333), (29, 57), (62, 50), (60, 90), (224, 224), (33, 400)]
    pages = [part(data_url(png(draw(RED, *size)))) for size in sizes]
    inputs = [*ASKED, *pages]
    assert len(inputs) == 16
    together = asking.embed(*inputs)["data"]
    for one, item in zip(inputs, together, strict=True):  # type: ignore[call-overload]
        (alone,) = asking.embed(one)["data"]  # type: ignore[misc]
        assert alone["image"] == item["image"]
        assert (floats(alone) - floats(item)).abs().max() <= EXACT


NUMPY = {"f32": "<f4", "f16": "<f2", "int8": "i1", "binary": "u1"}


@pytest.mark.parametrize(
    ("dtype", "error"), [("f32", 0.0), ("f16", 5e-4), ("int8", 0.5 / 127 + 1e-7), ("binary", None)]
)
def test_every_number_format_comes_as_numbers_as_base64_and_as_bytes(
    asking: Asking, dtype: str, error: float | None
) -> None:
    inputs = ["What colour?", part(URLS[0])]
    exact = [floats(one).numpy() for one in asking.embed(*inputs)["data"]]  # type: ignore[attr-defined]
    numbers = asking.embed(*inputs, dtype=dtype)["data"]
    packed = asking.embed(*inputs, dtype=dtype, encoding_format="base64")["data"]
    answer = asking.post("/v1/embeddings", {"input": inputs, "dtype": dtype}, accept="application/octet-stream")
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int.from_bytes(answer.content[:8], "little")
    header, raw = json.loads(answer.content[8 : 8 + length]), answer.content[8 + length :]
    assert (header["dtype"], header["model"], header["endianness"]) == (dtype, "pages", "little")
    assert length % 8 == 0
    assert header["usage"]["prompt_tokens"] == sum(map(len, exact))
    for true, one, other, entry in zip(exact, numbers, packed, header["data"], strict=True):  # type: ignore[call-overload]
        width = 16 if dtype == "binary" else 128
        assert one["shape"] == other["shape"] == entry["shape"] == [len(true), 128]
        assert one["dtype"] == other["dtype"] == dtype
        assert one["image"] == entry.get("image")
        plain = numpy.array(one["embedding"]).astype(NUMPY[dtype])
        coded = numpy.frombuffer(base64.b64decode(other["embedding"]), NUMPY[dtype]).reshape(-1, width)
        bare = numpy.frombuffer(raw[entry["start"] : entry["end"]], NUMPY[dtype]).reshape(-1, width)
        assert (plain == coded).all()
        assert (coded == bare).all()
        if error is None:
            assert (numpy.unpackbits(coded, axis=1) == (true > 0)).all()
        else:
            scale = 127 if dtype == "int8" else 1
            assert numpy.abs(coded.astype("f4") / scale - true).max() <= error
    assert header["data"][-1]["end"] == len(raw)


def test_a_streamed_answer_is_a_line_for_each_input_and_one_for_the_cost(asking: Asking) -> None:
    inputs = [part(url) for url in URLS * 14]
    whole = asking.embed(*inputs[:3])
    for fields, headers in (({"stream": True}, {}), ({}, {"accept": "application/x-ndjson"})):
        answer = asking.post("/v1/embeddings", {"input": inputs, **fields}, **headers)
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["index"] for line in lines[:-1]] == list(range(42))
        assert lines[-1]["object"] == "usage"
        assert lines[-1]["usage"]["prompt_tokens"] == 14 * whole["usage"]["prompt_tokens"]  # type: ignore[index]
        for line, one in zip(lines, whole["data"], strict=False):  # type: ignore[call-overload]
            assert (floats(line) - floats(one)).abs().max() <= EXACT


def test_one_bad_page_is_reported_in_its_place_and_the_others_come(asking: Asking) -> None:
    inputs = [part(URLS[0]), part(BROKEN), "What colour?", part(URLS[1], max_pixels=1)]
    body = {"input": inputs}
    for data in (
        asking.post("/v1/embeddings", body).json()["data"],
        [json.loads(line) for line in asking.post("/v1/embeddings", {**body, "stream": True}).text.splitlines()[:-1]],
    ):
        assert [one["object"] for one in data] == ["embedding", "error", "embedding", "error"]
        assert [one["index"] for one in data] == [0, 1, 2, 3]
        assert data[1]["error"]["code"] == "invalid_image"
        assert data[1]["error"]["param"] == "input.1.image_url"
        assert "max_pixels is 1" in data[3]["error"]["message"]
    raw = asking.post("/v1/embeddings", body, accept="application/octet-stream").content
    entries = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["data"]
    assert ["error" in entry for entry in entries] == [False, True, False, True]


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_a_page_is_seen_no_larger_than_one_may_be_sent(asking: Asking, name: str) -> None:
    small, most = data_url(png(draw(RED, 4, 4))), 40_000_000
    error = asking.refusal("/v1/embeddings", {"input": [part(small, **{name: most + 1})]})
    assert error["param"] == f"input.0.image_url.{name}"
    assert f"{name} is {most + 1}; the most is {most}" in str(error["message"])
    both = part(small, min_pixels=200_000_000_000, max_pixels=200_000_000_000)
    assert asking.refusal("/v1/embeddings", {"input": [both]})["param"] == "input.0.image_url.min_pixels"
    # Within the server's bound, and past the model's context.
    assert "context" in str(asking.refusal("/v1/embeddings", {"input": [part(small, min_pixels=most)]})["message"])


def test_the_context_that_the_operator_set_holds_for_queries_and_pages(folder: Path) -> None:
    with served_embedder(folder, max_model_len=64) as url:
        asking = Asking(url)
        asking.embed("What colour?", part(URLS[0]))
        for one in ("colour " * 80, part(URLS[0], min_pixels=28 * 28 * 60)):
            error = asking.refusal("/v1/embeddings", {"input": [one]})
            assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
            assert "at most 64" in str(error["message"])


def test_a_bad_page_of_a_pdf_is_reported_in_its_place(asking: Asking) -> None:
    inputs = [part(data_url(with_bad_pages(), "application/pdf"))]
    whole = asking.embed(*inputs)["data"]
    lines = asking.post("/v1/embeddings", {"input": inputs}, accept="application/x-ndjson").text.splitlines()
    raw = asking.post("/v1/embeddings", {"input": inputs}, accept="application/octet-stream").content
    entries = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["data"]
    for data in (whole, [json.loads(line) for line in lines[:-1]], entries):
        assert [(one["index"], one["page"], "error" in one) for one in data] == [  # type: ignore[attr-defined]
            (0, 1, False),
            (0, 2, True),
            (0, 3, True),
            (0, 4, False),
        ]
    assert "page 2 of the PDF is 20000x20000 points" in whole[1]["error"]["message"]  # type: ignore[index]


def test_a_pdf_is_one_input_of_many_pages(asking: Asking) -> None:
    booklet = data_url(paper(), "application/pdf")
    items = asking.embed("a", part(booklet), part(URLS[0]))["data"]
    assert [(one["index"], one["page"]) for one in items] == [(0, None), (1, 1), (1, 2), (1, 3), (2, None)]  # type: ignore[attr-defined]
    (second,) = asking.embed(part(booklet, pages="2"))["data"]  # type: ignore[misc]
    assert second["page"] == 2
    assert (floats(second) - floats(items[2])).abs().max() <= EXACT  # type: ignore[index]
    assert (floats(second) - floats(items[1])).abs().max() > 0.01  # type: ignore[index]
    raw = asking.post("/v1/embeddings", {"input": [part(booklet)]}, accept="application/octet-stream").content
    entries = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["data"]
    assert [(entry["index"], entry["page"]) for entry in entries] == [(0, 1), (0, 2), (0, 3)]


def test_corrupt_encrypted_and_too_many_pdfs_are_refused(asking: Asking) -> None:
    cut, closed = (data_url(data, "application/pdf") for data in (paper()[:200], encrypted(b"secret")))
    answer = asking.embed(part(cut), part(closed), "a")
    assert [one["object"] for one in answer["data"]] == ["error", "error", "embedding"]  # type: ignore[attr-defined]
    booklet = data_url(paper([RED, BLUE, GREEN] * 4), "application/pdf")
    error = asking.refusal("/v1/embeddings", {"input": [part(booklet)] * 3})
    assert "33 pages or more; the limit is 32" in str(error["message"])
    error = asking.refusal("/v1/rerank", {"query": "a", "documents": [part(booklet)]})
    assert "only a picture will do" in str(error["message"])


def test_when_nothing_can_be_embedded_the_request_is_refused(asking: Asking) -> None:
    for fields in ({}, {"stream": True}):
        error = asking.refusal("/v1/embeddings", {"input": [part(BROKEN)], **fields})
        assert error["code"] == "invalid_image"
    assert asking.refusal("/v1/embeddings", {"input": [part(BROKEN)] * 2})["param"] == "input.0.image_url"


def test_inputs_are_counted_before_each_is_looked_at(asking: Asking) -> None:
    error = asking.refusal("/v1/embeddings", {"input": ["a"] * 1025, "input_type": "document"})
    assert (error["param"], error["message"]) == ("input", "input has 1025 items; the limit is 1024 (--max-inputs)")


def test_image_tokens_only_leaves_the_words_around_a_page_out(asking: Asking) -> None:
    (whole,) = asking.embed(part(URLS[0]))["data"]  # type: ignore[misc]
    (alone,) = asking.embed(part(URLS[0]), image_tokens_only=True)["data"]  # type: ignore[misc]
    start, length = whole["image"]["start"], whole["image"]["length"]
    assert alone["image"] == {**whole["image"], "start": 0}
    assert alone["shape"] == [length, 128]
    assert (floats(alone) - floats(whole)[start : start + length]).abs().max() <= EXACT


def test_pool_factor_makes_fewer_vectors_that_say_nearly_the_same(asking: Asking) -> None:
    answer = asking.embed(part(URLS[2]), pool_factor=3)
    (pooled,) = answer["data"]  # type: ignore[misc]
    (whole,) = asking.embed(part(URLS[2]))["data"]  # type: ignore[misc]
    assert pooled["shape"][0] == whole["shape"][0] // 3
    assert pooled["image"] is None
    assert answer["usage"]["prompt_tokens"] == whole["shape"][0]  # type: ignore[index]
    assert floats(pooled).norm(dim=1).sub(1).abs().max() <= 1e-5
    nearest = (floats(whole) @ floats(pooled).T).max(dim=1).values
    assert nearest.mean() > 0.8


def expected_score(model: ColQwen, query: str, page: object) -> float:
    asked, shown = embed(model, query, page)  # type: ignore[arg-type]
    return float((vectors(asked) @ vectors(shown).T).max(dim=1).values.sum())


def test_scores_are_late_interaction(asking: Asking, model: ColQwen) -> None:
    body = {"text_1": "What colour?", "text_2": [part(url) for url in URLS], "model": "pages"}
    answer = asking.post("/v1/score", body).json()
    scores = [one["score"] for one in answer["data"]]
    assert scores == pytest.approx([expected_score(model, "What colour?", page) for page in PAGES], abs=1e-4)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    pairs = asking.post("/v1/score", {"queries": ["a", "What colour?"], "documents": body["text_2"][:2]}).json()
    assert [one["score"] for one in pairs["data"]] == pytest.approx(
        [expected_score(model, "a", PAGES[0]), expected_score(model, "What colour?", PAGES[1])], abs=1e-4
    )


def test_a_ranking_is_best_first_and_takes_vectors(asking: Asking) -> None:
    documents = [part(url) for url in URLS]
    plain = asking.post("/v1/rerank", {"query": "What colour?", "documents": documents}).json()
    scores = [one["relevance_score"] for one in plain["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all("document" not in one for one in plain["results"])
    assert plain["usage"]["total_tokens"] > 0

    def sendable(item: dict[str, object]) -> dict[str, object]:
        return {name: item[name] for name in ("embedding", "dtype", "shape")}

    for fields in ({}, {"encoding_format": "base64"}, {"dtype": "int8"}, {"dtype": "f16", "encoding_format": "base64"}):
        made = [sendable(item) for item in asking.embed("What colour?", *documents, **fields)["data"]]  # type: ignore[attr-defined]
        answer = asking.post(
            "/v1/rerank", {"query": made[0], "documents": made[1:], "top_n": 2, "return_documents": True}
        ).json()
        assert [one["index"] for one in answer["results"]] == [one["index"] for one in plain["results"]][:2]
        assert [one["relevance_score"] for one in answer["results"]] == pytest.approx(scores[:2], rel=0.01)
        assert answer["results"][0]["document"]["dtype"] == made[0]["dtype"]
        assert answer["usage"]["total_tokens"] == 0


def test_pages_of_many_vectors_may_be_sent_as_numbers(asking: Asking) -> None:
    made = numpy.random.default_rng(0).standard_normal((4, 779, 128)).astype("f4")
    made /= numpy.linalg.norm(made, axis=2, keepdims=True)
    query, *pages = ({"embedding": page.tolist()} for page in made)
    answer = asking.post("/v1/score", {"queries": query, "documents": pages}).json()
    expected = [float((made[0] @ page.T).max(axis=1).sum()) for page in made[1:]]
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-3)
    ranked = asking.post("/v1/rerank", {"query": query, "documents": pages}).json()["results"]
    assert [one["index"] for one in ranked] == sorted(range(3), key=lambda index: -expected[index])


def test_numbers_without_end_are_refused(asking: Asking) -> None:
    for row, said in (
        ([0] * 1_000_001, "too many values; at most 1000000 are read"),
        ([None] * 900_000, "embedding"),
    ):
        error = asking.refusal("/v1/rerank", {"query": {"embedding": [row]}, "documents": [{"embedding": [[1.0]]}]})
        assert said in f"{error['message']} {error['param']}"
    assert "too many values" in str(asking.refusal("/v1/embeddings", {"input": [1] * 100_001})["message"])


def test_numbers_are_not_kept_as_they_came_while_they_wait(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's own they take ten times what they did in the body, which is all that the bounds count."""
    kept: list[object] = []
    score = Embed.score

    async def watched(self: Embed, call: ScoreCall) -> Scores:
        gc.collect()
        kept.extend(one for one in gc.get_objects() if type(one) in (ScoreRequest, RerankRequest, Vectors))
        return await score(self, call)

    monkeypatch.setattr(Embed, "score", watched)
    item = {"embedding": [[1.0, 0.5]]}
    assert asking.post("/v1/score", {"queries": item, "documents": [item]}).status_code == 200
    told = asking.post("/v1/rerank", {"query": item, "documents": [item], "return_documents": True}).json()
    assert told["results"][0]["document"] == item | {"dtype": "f32"}
    assert kept == []


def test_pages_of_many_vectors_may_be_sent_as_base64(asking: Asking) -> None:
    made = numpy.random.default_rng(0).standard_normal((2, 779, 128)).astype("<f4")
    query, page = ({"embedding": one.tolist()} for one in made)
    coded = {"embedding": base64.b64encode(made[1].tobytes()).decode(), "shape": [779, 128]}
    answer = asking.post("/v1/score", {"queries": query, "documents": [page, coded]}).json()
    first, second = (one["score"] for one in answer["data"])
    assert first == second


def test_padding_in_sent_vectors_is_masked(asking: Asking) -> None:
    query = {"embedding": [[1.0, 0.0], [0.0, 1.0]]}
    page = [[-1.0, 0.0], [0.0, -1.0]]
    body = {"queries": query, "documents": [{"embedding": page}, {"embedding": [*page, [0.0, 0.0]]}]}
    assert [one["score"] for one in asking.post("/v1/score", body).json()["data"]] == [0.0, 0.0]
    page = [[-0.6, -0.8]]
    body = {"queries": query, "documents": [{"embedding": page}, {"embedding": [*page, [0.0, 0.0]]}]}
    scores = [one["score"] for one in asking.post("/v1/score", body).json()["data"]]
    assert scores == pytest.approx([-1.4, -1.4])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": []}, "input"),
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "one of them"),
        ({"input": [1, 2, 3]}, "not token ids"),
        ({"input": [[1, 2, 3]]}, "not token ids"),
        ({"input": "a", "input_type": "document"}, "a document is the picture"),
        ({"input": [part(URLS[0])], "input_type": "query"}, "a query is a text"),
        ({"input": ["a"], "pool_factor": 2}, "pool_factor is for pages"),
        ({"input": ["a"], "image_tokens_only": True}, "image_tokens_only is for pages"),
        ({"input": ["a"] * 10_000}, "10000 items"),
        ({"input": [part(URLS[0])] * 33}, "33 pages"),
        ({"input": [part(HUGE)]}, "30000x30000"),
        ({"input": [part(data_url(b""))]}, "empty"),
        ({"input": "a", "dimensions": 64}, "dimensions"),
        ({"input": "a", "dtype": "int4"}, "dtype"),
        ({"input": "a", "surprise": 1}, "surprise"),
        ({"input": [{"type": "video_url", "video_url": "http://x/y.mp4"}]}, "videos are not embedded"),
        ({"input": ["word " * 3000]}, "tokens"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]}, "one text or one picture"),
    ],
)
def test_bad_requests_are_refused_by_name(asking: Asking, body: object, said: str) -> None:
    error = asking.refusal("/v1/embeddings", body)
    assert said in f"{error['message']} {error['param']}"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/score", {"text_1": "a", "text_2": []}, "empty"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": [{"image": URLS[0]}] * 3}, "2 for 3 documents"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "a document is the picture"),
        ("/v1/score", {"text_1": {"image": URLS[0]}, "text_2": {"image": URLS[0]}}, "a query is a text"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "AAAA"}]}, "shape"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "!!", "shape": [1, 128]}]}, "not base64"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": PADDED_WITHIN, "shape": [1, 128]}]}, "not base64"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "AAAAA", "shape": [1, 128]}]}, "not base64"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "é", "shape": [1, 128]}]}, "not base64"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "AAAA", "shape": [1, 128]}]}, "3 bytes are not"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": "AAAA", "shape": [10**3000] * 2}]}, "shape"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[]], "dtype": "binary"}]}, "no vectors"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[]]}]}, "no vectors"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[10**400]]}]}, "embedding"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[1e300]]}]}, "not finite"),
        ("/v1/rerank", {"query": "a", "documents": [{"id": 10**30}]}, "whole number from 0"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[0.0] * 128]}]}, "zeros"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[1.0, 2.0]]}]}, "cannot be compared"),
        ("/v1/rerank", {"query": "a", "documents": [{"embedding": [[300.0]], "dtype": "int8"}]}, "no int8"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": BROKEN}]}, "documents.0"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": URLS[0]}], "top_n": 0}, "top_n"),
    ],
)
def test_bad_comparisons_are_refused_by_name(asking: Asking, path: str, body: object, said: str) -> None:
    error = asking.refusal(path, body)
    assert said in f"{error['message']} {error['param']}"


def test_raw_bytes_have_neither_lines_nor_an_encoding(asking: Asking) -> None:
    for fields in ({"stream": True}, {"encoding_format": "base64"}):
        error = asking.refusal("/v1/embeddings", {"input": "a", **fields}, accept="application/octet-stream")
        assert error["param"] in fields


def test_the_embedding_model_does_not_chat(asking: Asking) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    assert "no loaded model answers in text" in str(asking.refusal("/v1/chat/completions", body)["message"])
    assert "makes vectors" in str(asking.refusal("/v1/chat/completions", {**body, "model": "pages"})["message"])
    assert asking.post("/v1/embeddings", {"input": "a", "model": "nobody"}).status_code == 404


def test_metrics_count_what_was_embedded(asking: Asking) -> None:
    def counted(name: str) -> float:
        text = httpx.get(asking.url + "/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    before = counted("onsight_prompt_tokens_total"), counted("onsight_images_total"), counted("onsight_engine_steps")
    made = asking.embed(part(URLS[0]))
    assert counted("onsight_prompt_tokens_total") - before[0] == made["usage"]["prompt_tokens"]  # type: ignore[index]
    assert counted("onsight_images_total") - before[1] == 1
    assert counted("onsight_engine_steps") > before[2]
    assert counted('onsight_request_success_total{finished_reason="stop",model_name="pages"}') > 0
