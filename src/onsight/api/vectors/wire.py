"""What requests for embeddings, scores and rankings may look like: OpenAI's, vLLM's and Jina's shapes."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from onsight.api.json_body import PART
from onsight.api.openai.wire import ChatMessage, Part
from onsight.api.strict import Strict, never, wrong
from onsight.tasks.vectors import Dtype


def _as_part(item: object) -> object:
    """A text, {"text": ...} and {"image": ...} as parts; anything else is judged as it is."""
    match item:
        case str():
            return {"type": "text", "text": item}
        case {"text": str(text), **rest} if not rest:
            return {"type": "text", "text": text}
        case {"image": str(image), **rest} if not rest:
            return {"type": "image_url", "image_url": image if ":" in image[:32] else f"data:;base64,{image}"}
        case int() | [int(), *_]:
            raise PydanticCustomError(
                "unsupported", "{why}", {"why": "send texts, not token ids", "value": "token ids"}
            )
        case _:
            return item


def _as_items(value: object) -> object:
    return [_as_part(item) for item in value] if isinstance(value, list) else [_as_part(value)]


Items = Annotated[
    list[Part],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | Part | list[str | Part]),
]
"""Queries are texts, pages are pictures."""


MOST_VALUES = 1_000_000
"""In a body with vectors as numbers: ten pages of 768 vectors. Reading them holds up every other thread."""


def _form_of(embedding: object) -> str:
    return f"{PART}base64" if isinstance(embedding, str) else f"{PART}numbers"


_Rows = Annotated[list[Annotated[list[float], Field(fail_fast=True)]], Field(fail_fast=True)]


class Vectors(Strict):
    """Vectors as an answer of ours gave them: numbers [rows][numbers], or base64 of `shape` [rows, numbers]."""

    embedding: Annotated[
        Annotated[str, Tag(f"{PART}base64")] | Annotated[_Rows, Tag(f"{PART}numbers")], Discriminator(_form_of)
    ]
    dtype: Dtype = "f32"
    shape: Annotated[list[Annotated[int, Field(ge=1, lt=1 << 32)]], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _shaped(self) -> Vectors:
        if isinstance(self.embedding, str) and self.shape is None:
            raise wrong("shape", "it is missing; base64 needs the shape that came with it")
        if isinstance(self.embedding, list) and len({len(row) for row in self.embedding}) != 1:
            raise wrong("embedding", "it should be vectors of one length, at least one")
        return self


def _as_id(value: object) -> object:
    """Whole numbers from 0 as they are, UUIDs in their usual form."""
    match value:
        case str():
            try:
                return str(uuid.UUID(value))
            except ValueError:
                pass
        case int() if not isinstance(value, bool) and 0 <= value < 1 << 64:
            return value
    raise PydanticCustomError("wrong", "it should be a whole number from 0 or a UUID, as `onsight search --json` says")


class Kept(Strict):
    """A page of the server's index (`--qdrant`), by the id of its point there."""

    id: Annotated[int | str, BeforeValidator(_as_id)]


def _kind_of(value: object) -> str:
    match value:
        case Vectors() | {"embedding": _}:
            return PART + "vectors"
        case Kept() | {"id": _}:
            return PART + "kept"
    return PART + "part"


ScoreItem = Annotated[
    Annotated[Part, Tag(f"{PART}part")]
    | Annotated[Vectors, Tag(f"{PART}vectors")]
    | Annotated[Kept, Tag(f"{PART}kept")],
    Discriminator(_kind_of),
]
ScoreItems = Annotated[
    list[ScoreItem],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | ScoreItem | list[str | ScoreItem]),
]


class EmbeddingsRequest(Strict):
    """The body of `POST /v1/embeddings`."""

    input: Items | None = Field(
        None, description="Texts are queries; pictures and PDFs (image_url, file parts) are pages."
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1)] | None = Field(
        None, description="In place of `input`: one user message with one text or one picture, as vLLM takes it."
    )
    model: str | None = Field(None, description="Left out, it means the only embedding model.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="What every input is to be; a text is a query and a picture a document anyway."
    )
    encoding_format: Literal["float", "base64"] | None = None
    dtype: Dtype = Field(
        "f32", description="int8: 127ths. binary: signs, 8 to a byte. Base64 and raw bytes are little-endian."
    )
    pool_factor: int = Field(1, ge=1, le=64, description="Of a page, about one vector for so many, by clustering.")
    image_tokens_only: bool = Field(False, description="Of a page, the vectors of its picture alone.")
    stream: bool = Field(False, description="A line of JSON for each input, as soon as it is there.")
    user: str | None = Field(None, description="Changes nothing: users are not told apart.")
    dimensions: Annotated[None, *never("vectors have the length that the model was trained with")] = None

    @model_validator(mode="after")
    def _one_source(self) -> EmbeddingsRequest:
        if (self.input is None) == (self.messages is None):
            raise wrong("input", "send it or `messages`, and one of them")
        for message in self.messages or ():
            if message.role != "user" or len(message.content) != 1:
                raise wrong("messages", "it should be one message from user with one text or one picture")
        return self


class ScoreRequest(Strict):
    """The body of `POST /v1/score`: one query for all documents, or as many as there are documents."""

    queries: ScoreItems = Field(validation_alias=AliasChoices("queries", "text_1"))
    documents: ScoreItems = Field(validation_alias=AliasChoices("documents", "text_2"))
    model: str | None = Field(None, description="Left out, it means the only embedding model.")

    @model_validator(mode="after")
    def _pairs(self) -> ScoreRequest:
        queries, documents = len(self.queries), len(self.documents)
        if queries not in (1, documents):
            raise wrong("queries", f"there are {queries} for {documents} documents; send one, or one for each document")
        return self


class RerankRequest(Strict):
    """The body of `POST /v1/rerank`."""

    query: Annotated[ScoreItem, BeforeValidator(_as_part, json_schema_input_type=str | ScoreItem)]
    documents: ScoreItems = Field(description="Pages, as pictures, as vectors, or as ids in the server's index.")
    model: str | None = Field(None, description="Left out, it means the only embedding model.")
    top_n: int | None = Field(None, ge=1, description="So many of the best; all if unset.")
    return_documents: bool = Field(False, description="With each result, the document as it was sent.")
