"""Wire items as the inputs that the embedding task understands. Pure; vectors are not decoded on the event loop."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Literal

import numpy

from onsight.api.openai.calls import to_part
from onsight.api.openai.wire import Part
from onsight.api.vectors.wire import EmbeddingsRequest, Kept, RerankRequest, ScoreRequest, Vectors
from onsight.core.embedding import Embedding
from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.messages import ImageRef, Text
from onsight.tasks.embed import EmbedCall, KeptRef, ScoreCall
from onsight.tasks.vectors import VectorForm, from_numbers, unpack

InputType = Literal["query", "document"]
Item = Part | Vectors | Kept

_PIECE_CHARS = 1 << 18

_ELSEWHERE = {
    "query": "a query is a text here, not a picture",
    "document": "a document is the picture of a page here, not a text: send an image_url part",
}


def embed_call(wire: EmbeddingsRequest, request_id: str, caller: str, *, streamed: bool) -> EmbedCall:
    """Raises Unsupported for an input that is not what `input_type` says."""
    if wire.messages is not None:
        places = [(wire.messages[0].content[0], "messages.0.content.0")]
    else:
        places = [(part, f"input.{index}") for index, part in enumerate(wire.input or ())]
    return EmbedCall(
        tuple(_input(part, place, wire.input_type) for part, place in places),
        wire.model,
        VectorForm(wire.image_tokens_only, wire.pool_factor),
        streamed,
        request_id,
        caller,
    )


def score_call(wire: ScoreRequest, request_id: str, caller: str) -> ScoreCall:
    """As many pairs as there are documents. Not for the event loop, as vectors are decoded."""
    queries = _queries(wire.queries, "queries")
    pages = _pages(wire.documents)
    return ScoreCall(queries, pages, wire.model, request_id, caller, "score", pairs=len(queries) > 1)


def rerank_call(wire: RerankRequest, request_id: str, caller: str) -> ScoreCall:
    """One query with every document. Not for the event loop, as vectors are decoded."""
    queries, pages = _queries([wire.query], "query"), _pages(wire.documents)
    return ScoreCall(queries, pages, wire.model, request_id, caller, "rerank")


def _queries(items: Sequence[Item], place: str) -> tuple[Text | Embedding, ...]:
    found = []
    for index, item in enumerate(items):
        one = _score_input(item, f"{place}.{index}", "query")
        assert not isinstance(one, ImageRef | KeptRef)  # refused before
        found.append(one)
    return tuple(found)


def _pages(items: Sequence[Item]) -> tuple[ImageRef | Embedding | KeptRef, ...]:
    found = []
    for index, item in enumerate(items):
        one = _score_input(item, f"documents.{index}", "document")
        assert not isinstance(one, Text)  # refused before
        found.append(one)
    return tuple(found)


def _score_input(item: Item, place: str, kind: InputType) -> Text | ImageRef | Embedding | KeptRef:
    match item:
        case Vectors():
            return _decode(item, place)
        case Kept() if kind == "query":
            raise Unsupported("the index holds pages; send the query as a text or as vectors", param=place)
        case Kept():
            return KeptRef(item.id, place)
        case _:
            return _input(item, place, kind)


def _input(part: Part, place: str, kind: InputType | None) -> Text | ImageRef:
    one = to_part(part, place)
    if not isinstance(one, Text | ImageRef):
        raise Unsupported("videos are not embedded; send pictures of it", param=place)
    if kind is not None and isinstance(one, Text) != (kind == "query"):
        raise Unsupported(_ELSEWHERE[kind], param=place)
    return one


def _decode(item: Vectors, place: str) -> Embedding:
    try:
        if isinstance(item.embedding, list):
            return from_numbers(numpy.array(item.embedding), item.dtype)
        rows, dims = item.shape or (0, 0)
        return unpack(_from_base64(item.embedding), item.dtype, rows, dims)
    except InvalidRequest as error:
        error.param = place
        raise


def _from_base64(text: str) -> bytes:
    # Piece by piece, so that other threads may run in between; no piece but the last one ends with padding.
    pieces = (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))
    try:
        if text.find("=", 0, -2) >= 0:
            raise ValueError
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except ValueError:  # not always binascii's: letters beyond ASCII are another
        raise InvalidRequest("the vectors are not base64") from None
