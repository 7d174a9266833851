"""Vectors on the wire: as JSON, a line of JSON each, or raw bytes behind a JSON header."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_core import from_json

from onsight.api.errors import ErrorObject, error_answer
from onsight.core.embedding import NO_IMAGE
from onsight.tasks.embed import Embedded, Refused, Scores
from onsight.tasks.vectors import Dtype, pack

_ALIGNED = 8
"""The bytes after a header begin at a multiple of this, so that they can be read in place."""

RAW_LAYOUT = (
    "8 bytes: the header's length, little-endian. The header: JSON as in `RawHeader`, padded with spaces to a multiple"
    " of 8 bytes. Then the vectors: those of an entry are bytes `start` to `end` after the header, row after row,"
    " little-endian; `shape` is [rows, numbers of a vector]. f32 and f16 are floats, int8 numbers are 127ths, and of"
    " binary 8 signs are a byte, the first in the highest bit."
)

Encoding = Literal["float", "base64"]


class ImageTokens(BaseModel):
    image_tokens: int


class EmbeddingUsage(BaseModel):
    """Tokens that the model read; pooling changes nothing about them."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: ImageTokens


class ImageRows(BaseModel):
    """The rows of a page's picture: `length` from `start` on, row by row of its grid of so many `columns`, which covers
    the page's `width` x `height` px evenly."""

    start: int
    length: int
    columns: int
    width: int
    height: int


class EmbeddingObject(BaseModel):
    """The vectors of one input: `shape` is [rows, numbers of a vector], whatever the number format.

    `embedding`: [rows][numbers], or base64 of the same; for binary 8 numbers are one, the first in the highest bit.
    `image` is null for queries, and once vectors are pooled. `page`: of a PDF, from 1; a PDF is one input and as many
    of these as it has pages.
    """

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[list[float]] | str
    shape: tuple[int, int]
    dtype: Dtype
    image: ImageRows | None
    page: int | None


class RefusedObject(BaseModel):
    """Why an input has no vectors, or `page` of it, a PDF; the others have."""

    object: Literal["error"] = "error"
    index: int
    error: ErrorObject
    page: int | None


class EmbeddingList(BaseModel):
    """The answer to `POST /v1/embeddings`, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: Iterable[EmbeddingObject | RefusedObject]
    model: str
    usage: EmbeddingUsage


class EmbeddingsEnd(BaseModel):
    """The last line of a streamed answer."""

    object: Literal["usage"] = "usage"
    model: str
    usage: EmbeddingUsage


class RawEntry(BaseModel):
    """Where an input's vectors are: bytes `start` to `end` after the header; or why there are none."""

    index: int
    page: int | None = None
    shape: tuple[int, int] | None = None
    start: int | None = None
    end: int | None = None
    image: ImageRows | None = None
    error: ErrorObject | None = None


class RawHeader(BaseModel):
    """The JSON before raw bytes; its own length comes first, in 8 bytes, little-endian. It is padded with spaces."""

    model: str
    dtype: Dtype
    endianness: Literal["little"] = "little"
    data: list[RawEntry]
    usage: EmbeddingUsage


class ScoreObject(BaseModel):
    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreList(BaseModel):
    """The answer to `POST /v1/score`: late interaction, the sum over a query's vectors of the best match of each."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreObject]
    usage: EmbeddingUsage


class RankedObject(BaseModel):
    """`index`: of the document as it was sent; `relevance_score`: as in `ScoreList`, not a probability."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class Ranking(BaseModel):
    """The answer to `POST /v1/rerank`, best first."""

    id: str
    model: str
    results: Iterable[RankedObject] = Field(description="Best first.")
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class Style:
    """How vectors are written."""

    model: str
    dtype: Dtype
    encoding: Encoding = "float"


def whole(items: Sequence[Embedded | Refused], style: Style) -> bytes:
    """The whole answer as JSON; not for the event loop."""
    data = (_object(item, style) for item in items)  # as in `ranking`
    answer = EmbeddingList.model_construct(data=data, model=style.model, usage=_usage(items))
    return answer.model_dump_json().encode()


def raw(items: Sequence[Embedded | Refused], style: Style) -> bytes:
    """The whole answer as bytes behind a header; not for the event loop."""
    entries, pieces, start = [], [], 0
    for item in items:
        if isinstance(item, Refused):
            entries.append(RawEntry(index=item.index, page=item.page, error=error_answer(item.error).error))
            continue
        piece = pack(item.embedding, style.dtype).tobytes()
        shape, end = (item.embedding.rows, item.embedding.dims), start + len(piece)
        image = _rows(item)
        entries.append(RawEntry(index=item.index, page=item.page, shape=shape, start=start, end=end, image=image))
        pieces.append(piece)
        start = end
    header = RawHeader(model=style.model, dtype=style.dtype, data=entries, usage=_usage(items))
    text = header.model_dump_json(exclude_none=True).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return b"".join((len(text).to_bytes(8, "little"), text, *pieces))


async def lines(items: AsyncGenerator[Embedded | Refused, None], style: Style) -> AsyncGenerator[bytes, None]:
    """Each item as a line of JSON as it comes, and what all cost as the last one. Closes `items`."""
    tokens = image_tokens = 0
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Embedded):
                tokens, image_tokens = tokens + item.tokens, image_tokens + item.image_tokens
            yield await asyncio.to_thread(_line, item, style)
    end = EmbeddingsEnd(model=style.model, usage=usage_of(tokens, image_tokens))
    yield end.model_dump_json().encode() + b"\n"


def scores(model: str, found: Scores) -> ScoreList:
    """One score for each document; of several queries, each is for the document at its own place."""
    return ScoreList(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        data=[ScoreObject(index=index, score=value) for index, value in enumerate(found.values)],
        usage=usage_of(found.tokens, found.image_tokens),
    )


def ranking(model: str, found: Scores, top_n: int | None, documents: Sequence[str] | None) -> Ranking:
    """The best `top_n`; of equal ones the first. `documents`: what was sent, as JSON, where it is to be sent back."""
    order = sorted(range(len(found.values)), key=lambda index: -found.values[index])[:top_n]
    # Made while they are written, one by one: in one go a million numbers would hold up every other thread.
    results = (
        RankedObject(
            index=index,
            relevance_score=found.values[index],
            document=None if documents is None else from_json(documents[index]),
        )
        for index in order
    )
    usage = usage_of(found.tokens, found.image_tokens)
    return Ranking.model_construct(id=f"rerank-{uuid.uuid4().hex}", model=model, results=results, usage=usage)


def usage_of(tokens: int, image_tokens: int) -> EmbeddingUsage:
    details = ImageTokens(image_tokens=image_tokens)
    return EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens, prompt_tokens_details=details)


def _usage(items: Sequence[Embedded | Refused]) -> EmbeddingUsage:
    made = [item for item in items if isinstance(item, Embedded)]
    return usage_of(sum(item.tokens for item in made), sum(item.image_tokens for item in made))


def _line(item: Embedded | Refused, style: Style) -> bytes:
    return _object(item, style).model_dump_json().encode() + b"\n"


def _object(item: Embedded | Refused, style: Style) -> EmbeddingObject | RefusedObject:
    if isinstance(item, Refused):
        return RefusedObject(index=item.index, error=error_answer(item.error).error, page=item.page)
    numbers = pack(item.embedding, style.dtype)
    # Built unchecked: checking a hundred thousand numbers of our own takes longer than writing them.
    return EmbeddingObject.model_construct(
        index=item.index,
        embedding=numbers.tolist() if style.encoding == "float" else base64.b64encode(numbers.tobytes()).decode(),
        shape=(item.embedding.rows, item.embedding.dims),
        dtype=style.dtype,
        image=_rows(item),
        page=item.page,
    )


def _rows(item: Embedded) -> ImageRows | None:
    span, size = item.embedding.image, item.size
    if span == NO_IMAGE or size is None:
        return None
    return ImageRows(start=span.start, length=span.length, columns=span.columns, width=size.width, height=size.height)
