"""Pages' vectors in a Qdrant collection, in a folder of this machine or on a server, found by late interaction."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy

from onsight.core.embedding import NO_IMAGE, Embedding, ImageSpan
from onsight.core.errors import InvalidRequest, StartError, Unavailable
from onsight.core.geometry import Size
from onsight.index.pages import KeptPage, Page

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

_log = logging.getLogger(__name__)

Compression = Literal["int8", "binary"]
PageId = int | str
"""A whole number from 0, or a UUID, as Qdrant has them."""

_Held = dict[str, tuple[str, set[int | None]]]
"""Each file's SHA-256, and which of its pages are kept."""
_AT_ONCE = 16
"""Pages in one call to a server: with 768 vectors of 128 numbers each they are some 30 MB of JSON."""
_READ_AT_ONCE = 4
"""Pages in one answer that is read: as Python's numbers such a page takes some 3 MB."""
_READERS = 4
"""Threads that wait for a server."""
_TIMEOUT_S = 60
_COMPARED_AGAIN = 2.0
"""Of what a server finds in a compressed copy, so many times `most` are compared by the vectors themselves."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection is. `where`: a folder of this machine, or the URL of a Qdrant server, which `key` opens."""

    where: str
    name: str
    key: str | None = None

    @property
    def is_server(self) -> bool:
        return self.where.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Hit:
    """A page that was found. `score`: the sum over the query's vectors of the best match of each."""

    score: float
    page: Page


class Collection:
    """One collection of whole pages. Its methods but `fetch` wait for disk or network, so they are not for the event
    loop."""

    def __init__(self, place: Place, compression: Compression | None = None) -> None:
        """Open the folder, which nobody else may have open, or think of the server.

        `compression`: of a copy that a server makes and searches first; the vectors themselves are kept, and decide.
        Raises StartError.
        """
        if compression is not None and not place.is_server:
            raise StartError(
                f"a copy as {compression} is made by Qdrant servers alone, and {place.where} is a folder, which is"
                " searched as it is: leave --compress out, or name a server with --qdrant URL"
            )
        if importlib.util.find_spec("qdrant_client") is None:
            raise StartError(
                "the index is kept by qdrant-client, which is not installed: pip install 'onsight[search]'"
            )
        # Imported here: it takes a second, which no command without an index should pay.
        from qdrant_client import QdrantClient

        self._place = place
        self._compression = compression
        # A folder's index is not made for several calls at once; a server's must not wait for one that hangs.
        self._in_turn: AbstractContextManager[object] = nullcontext() if place.is_server else threading.Lock()
        self._files: _Held | None = None
        try:
            self._client: QdrantClient = (
                QdrantClient(url=place.where, api_key=place.key, timeout=_TIMEOUT_S, check_compatibility=False)
                if place.is_server
                else QdrantClient(path=place.where, force_disable_check_same_thread=True)
            )
        except (RuntimeError, OSError, ValueError) as error:
            if "already accessed" in str(error):
                raise StartError(
                    f"the index {place.where} is open in another process, and one at a time may have it: end that one,"
                    " or keep the index on a Qdrant server (--qdrant URL)"
                ) from None
            raise StartError(f"the index {place.where} cannot be opened: {error}") from None
        self._readers = ThreadPoolExecutor(_READERS if place.is_server else 1, "onsight-index")

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def prepare(self, model: str, dims: int) -> None:
        """Make the collection unless it is there.

        Raises StartError for a collection of another model, of another kind, or not compressed as it should be.
        """
        from qdrant_client import models

        with self._reached():
            exists = self._client.collection_exists(self._place.name)
        if exists:
            self.check(model, dims)
            return
        vectors = models.VectorParams(
            size=dims,
            distance=models.Distance.DOT,  # ours have length 1 already
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            quantization_config=_compressed(self._compression),
        )
        with self._reached():
            self._client.create_collection(self._place.name, vectors_config=vectors)
            if self._place.is_server:
                for field in ("file", "sha256"):
                    self._client.create_payload_index(self._place.name, field, models.PayloadSchemaType.KEYWORD)

    def check(self, model: str | None, dims: int) -> None:
        """Whether vectors of `dims` numbers, made by `model` if it is known, can be compared with those that are kept.

        Raises StartError when they cannot, or there is no such collection.
        """
        with self._reached():
            if not self._client.collection_exists(self._place.name):
                raise StartError(
                    f"{self._place.where} has no collection {self._place.name!r}: make it with `onsight embed FILES"
                    " --out qdrant`, or name another one with --qdrant-collection"
                )
            vectors = self._client.get_collection(self._place.name).config.params.vectors
            points, _ = self._client.scroll(self._place.name, limit=1)
        size = None if isinstance(vectors, Mapping) or vectors is None else vectors.size
        if isinstance(vectors, Mapping) or vectors is None or vectors.multivector_config is None or size != dims:
            raise StartError(
                f"the collection {self._place.name!r} does not hold pages of {dims} numbers a vector, as this model"
                " makes them: name another one with --qdrant-collection"
            )
        compressed = _compressed(self._compression)
        if compressed is not None and type(vectors.quantization_config) is not type(compressed):
            raise StartError(
                f"the collection {self._place.name!r} is there and is not kept as {self._compression}: leave --compress"
                " out, or name a new one with --qdrant-collection"
            )
        kept = points[0].payload.get("model") if points and points[0].payload else model
        if model is not None and kept != model:
            raise StartError(
                f"the collection {self._place.name!r} holds vectors of {kept!r}, which mean nothing to {model!r}: use"
                f" --model {kept}, or another --qdrant-collection"
            )

    def known(self, file: str, digest: str) -> frozenset[int | None]:
        """Which pages of a file are there, as it is now."""
        with self._reached():
            if self._place.is_server:
                found = self._payloads([_is("file", file), _is("sha256", digest)], ["page"])
                return frozenset(facts.get("page") for facts in found)
            held, pages = self._held().get(file, (digest, set()))
        return frozenset(pages if held == digest else ())

    def add(self, pages: Sequence[KeptPage]) -> None:
        """Keep pages of one file; what was kept of the file when it held something else goes."""
        from qdrant_client import models

        with self._reached():
            held: _Held = {} if self._place.is_server else self._held()
            for start in range(0, len(pages), _AT_ONCE):
                points = [_point(page) for page in pages[start : start + _AT_ONCE]]
                self._client.upsert(self._place.name, points)
            for file, digest in {(page.file, page.digest) for page in pages}:
                if self._place.is_server or held.get(file, (digest,))[0] != digest:
                    stale = models.Filter(must=[_is("file", file)], must_not=[_is("sha256", digest)])
                    self._client.delete(self._place.name, models.FilterSelector(filter=stale))
                    held.pop(file, None)
            for page in pages:
                held.setdefault(page.file, (page.digest, set()))[1].add(page.page)

    def _held(self) -> _Held:
        """Of a folder, where every look for a file reads all points: what is in it, read once."""
        if self._files is None:
            self._files = {}
            for facts in self._payloads([], ["file", "sha256", "page"]):
                pages = self._files.setdefault(str(facts.get("file")), (str(facts.get("sha256")), set()))[1]
                pages.add(facts.get("page"))
        return self._files

    def _payloads(self, chosen: list[models.FieldCondition], fields: list[str]) -> Iterator[dict[str, Any]]:
        from qdrant_client import models

        after: Any = None
        while True:
            points, after = self._client.scroll(
                self._place.name,
                scroll_filter=models.Filter(must=list(chosen)),
                limit=1000,
                offset=after,
                with_payload=fields,
            )
            yield from (point.payload or {} for point in points)
            if after is None:
                return

    def search(self, query: Embedding, most: int) -> list[Hit]:
        """The `most` best pages, best first, without their vectors."""
        from qdrant_client import models

        by_vectors = models.QuantizationSearchParams(rescore=True, oversampling=_COMPARED_AGAIN)
        with self._reached():
            found = self._client.query_points(
                self._place.name,
                query=query.vectors(),
                limit=most,
                search_params=models.SearchParams(quantization=by_vectors) if self._place.is_server else None,
            )
        return [Hit(point.score, _page(point.payload)) for point in found.points]

    async def fetch(self, ids: Sequence[PageId]) -> list[KeptPage]:
        """The pages with these ids, in their order; read on threads of the index's own, a few pages at a time.

        Raises InvalidRequest for ids that are not there or not of pages, Unavailable when the index cannot be read.
        """
        wanted, kept = list(dict.fromkeys(ids)), dict[str, KeptPage]()
        for start in range(0, len(wanted), _READ_AT_ONCE):
            some = wanted[start : start + _READ_AT_ONCE]
            kept |= await asyncio.get_running_loop().run_in_executor(self._readers, self._read, some)
        missing = [one for one in wanted if str(one) not in kept]
        if missing:
            raise InvalidRequest(f"the collection {self._place.name!r} has no page with the id {missing[0]!r}")
        return [kept[str(one)] for one in ids]

    def _read(self, ids: list[PageId]) -> dict[str, KeptPage]:
        """Those of the pages that are there, by id. Raises as `fetch` does."""
        try:
            with self._reached():
                points = self._client.retrieve(self._place.name, ids, with_vectors=True)
        except StartError as error:
            # Where the index is concerns no caller.
            _log.warning("pages of the index cannot be read: %s", error)
            raise Unavailable("the index cannot be read now; try again soon, or send the pages themselves") from None
        kept = {}
        for point in points:
            try:
                kept[str(point.id)] = _kept(point.payload, point.vector)
            except StartError:
                raise InvalidRequest(
                    f"{point.id!r} in the collection {self._place.name!r} is no page that `onsight embed` made: leave"
                    " it out"
                ) from None
        return kept

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises StartError for what Qdrant says, or when it does not answer."""
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        with self._in_turn:
            try:
                yield
            except (ApiException, QdrantException) as error:
                raise StartError(
                    f"Qdrant at {self._place.where} cannot do what it is asked: {' '.join(str(error).split())[:300]}"
                ) from None


def _compressed(compression: Compression | None) -> models.ScalarQuantization | models.BinaryQuantization | None:
    from qdrant_client import models

    match compression:
        case None:
            return None
        case "int8":
            return models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            )
        case "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))


def _is(field: str, value: str) -> models.FieldCondition:
    from qdrant_client import models

    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _point(page: KeptPage) -> models.PointStruct:
    from qdrant_client import models

    span = page.embedding.image
    facts: dict[str, object] = {
        "model": page.model,
        "file": page.file,
        "page": page.page,
        "sha256": page.digest,
        "size": [page.size.width, page.size.height],
        "image": None if span == NO_IMAGE else [span.start, span.length, span.columns],
    }
    return models.PointStruct(id=page.id, vector=page.embedding.vectors(), payload=facts)


def _page(facts: object) -> Page:
    """The page of a point. Raises StartError for a point that is none of ours."""
    match facts:
        case {
            "model": str(model),
            "file": str(file),
            "page": int() | None as page,
            "sha256": str(digest),
            "size": [int(width), int(height)],
        }:
            return Page(file, page, digest, Size(width, height), model)
    raise _strange()


def _kept(facts: object, rows: object) -> KeptPage:
    """As `_page`, with its vectors."""
    page = _page(facts)
    match facts, rows:
        case {"image": None | [int(), int(), int()] as image}, [[_, *_], *_]:
            vectors = numpy.array(rows, numpy.float32)
            span = NO_IMAGE if image is None else ImageSpan(*image)
            embedding = Embedding(vectors.tobytes(), vectors.shape[0], vectors.shape[1], span)
            return KeptPage(page.file, page.page, page.digest, page.size, page.model, embedding)
    raise _strange()


def _strange() -> StartError:
    return StartError("the collection holds points that `onsight embed` did not make: name another one")
