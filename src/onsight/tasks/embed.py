"""Embed and score: queries and pages as vectors, and how well pages answer queries."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from onsight.core.embedding import Embedding
from onsight.core.engine import EmbedEngine
from onsight.core.errors import EngineFailed, InvalidRequest, Overloaded, RequestError, TimedOut, TooLarge, Unsupported
from onsight.core.geometry import Size
from onsight.core.messages import Image, ImageRef, Text
from onsight.core.together import together
from onsight.index.collection import Collection, PageId
from onsight.media.door import MediaDoor
from onsight.media.pdf import BadPage
from onsight.tasks.admission import Admission, RequestPixels
from onsight.tasks.record import Bookkeeper, Record, kept
from onsight.tasks.roster import LoadedEmbedder, Roster
from onsight.tasks.vectors import VectorForm, form

Input = Text | ImageRef | Embedding
"""A query, a page, or vectors of either."""


@dataclass(frozen=True, slots=True)
class KeptRef:
    """A page of the server's own index, by its id. `param`: where it stands in the request."""

    id: PageId
    param: str | None = None


_OF_ONE = (InvalidRequest, TooLarge, TimedOut, Overloaded, EngineFailed)
"""What concerns one input or page; anything else ends the request."""

_PAGES_AT_ONCE = 8
"""Pictures and PDFs of one request that are opened and not yet sent; so its memory does not grow with its length."""


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """What a route or the command line asks for. `streamed`: the answer is not held as a whole, so it may be long.

    `caller`: who asks, as the log names them and as those who wait take turns.
    """

    inputs: tuple[Text | ImageRef, ...]
    model: str | None = None
    form: VectorForm = field(default_factory=VectorForm)
    streamed: bool = False
    request_id: str = ""
    caller: str = ""


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """Which pages are compared with the one query; or, in `pairs`, each with the query at its own place.

    Either may come as vectors, and a page as the id that it has in the index. `caller`: see `EmbedCall`.
    """

    queries: tuple[Text | Embedding, ...]
    pages: tuple[ImageRef | Embedding | KeptRef, ...]
    model: str | None = None
    request_id: str = ""
    caller: str = ""
    task: str = "score"
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of input `index` (0-based), and how many tokens it had, whatever became of them.

    `page`: which page of a PDF it is, from 1; a PDF is one input and as many of these as it has pages. `size`: px of
    the page as it was opened; None for a query.
    """

    index: int
    embedding: Embedding
    tokens: int
    image_tokens: int
    page: int | None = None
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why input `index` (0-based) has no vectors, or `page` of it, a PDF (from 1); the others have."""

    index: int
    error: RequestError
    page: int | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """What became of an input or of a page of it; `page` and `size` as in `Embedded`."""

    made: Embedding | RequestError
    page: int | None = None
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """`values`: one a page, late interaction; `tokens` of all that had to be embedded for it."""

    values: list[float]
    tokens: int
    image_tokens: int


class Embed:
    """Takes a place in the queue, opens the pages, embeds them and the queries, compares them."""

    def __init__(
        self,
        roster: Roster,
        door: MediaDoor,
        admission: Admission,
        bookkeepers: Sequence[Bookkeeper] = (),
        max_inputs: int = 1024,
        index: Collection | None = None,
    ) -> None:
        """`max_inputs`: most queries and pages of one request. `index`: pages that may be named by their ids."""
        self._roster = roster
        self._door = door
        self._admission = admission
        self._turns = admission.turns()
        self._bookkeepers = tuple(bookkeepers)
        self._max_inputs = max_inputs
        self._index = index

    @property
    def most_pages(self) -> int:
        """Most pages of an answer that is held as a whole."""
        return self._door.limits.max_images

    def check_count(self, count: int, noun: str) -> None:
        """Refuse a request of no items, or of more than one may have; routes do, before they look at each."""
        if not count:
            raise InvalidRequest(f"{noun} is empty; send at least one", param=noun)
        if count > self._max_inputs:
            raise InvalidRequest(
                f"{noun} has {count} items; the limit is {self._max_inputs} (--max-inputs)", param=noun
            )

    async def stream(self, call: EmbedCall) -> AsyncGenerator[Embedded | Refused, None]:
        """Each input's vectors, or why there are none, in the order of the inputs. Closing it cancels the rest.

        Raises RequestError, before the first item whenever the request itself, or its only input, is at fault.
        """
        loaded = self._roster.find_embedder(call.model)
        record = Record(call.request_id, "embed", loaded.name, call.caller)
        with kept(record, self._bookkeepers):
            self._check(call.inputs, "input", streamed=call.streamed)
            _check_form(call)
            deadline = self._admission.deadline()
            with self._admission.place(caller=call.caller):
                each = self._each(call.inputs, loaded.engine, record, call.form)
                async with aclosing(deadline.follow(each)) as items:
                    async for item in items:
                        if isinstance(item, Refused) and item.page is None and len(call.inputs) == 1:
                            raise item.error
                        if not call.streamed:
                            self._check_pages(record.images, "input")
                        yield item
                        if call.streamed:
                            deadline.renew()
            record.reason = "stop"

    async def score(self, call: ScoreCall) -> Scores:
        """One score a page. Raises RequestError; one bad input is enough for that."""
        loaded = self._roster.find_embedder(call.model)
        record = Record(call.request_id, call.task, loaded.name, call.caller)
        with kept(record, self._bookkeepers):
            self._check(call.queries, "queries")
            self._check(call.pages, "documents")
            self._check_index(call.pages)
            found: list[Embedding] = []
            deadline = self._admission.deadline()
            with self._admission.place(caller=call.caller):
                pages = await deadline.within(self._from_index(call.pages, loaded))
                each = self._each((*call.queries, *pages), loaded.engine, record, VectorForm())
                async with aclosing(deadline.follow(each)) as items:
                    async for item in items:
                        if isinstance(item, Refused):
                            raise item.error
                        found.append(item.embedding)
                count = len(call.queries)
                compared = _compared(loaded.engine, found[:count], found[count:], pairs=call.pairs)
                values = await deadline.within(compared)
            record.reason = "stop"
        return Scores(values, record.prompt_tokens, record.image_tokens)

    def _check_index(self, pages: Sequence[ImageRef | Embedding | KeptRef]) -> None:
        for one in pages:
            if isinstance(one, KeptRef) and self._index is None:
                raise Unsupported(
                    f"page {one.id!r} is named by an id, but this server has no index; start it with --qdrant, or send"
                    " the page",
                    param=one.param,
                )

    async def _from_index(
        self, pages: Sequence[ImageRef | Embedding | KeptRef], loaded: LoadedEmbedder
    ) -> list[ImageRef | Embedding]:
        """With the vectors of the pages that are named by ids. Raises InvalidRequest for one that is not there."""
        named = [one for one in pages if isinstance(one, KeptRef)]
        found = []
        if named and self._index is not None:
            try:
                found = await self._index.fetch([one.id for one in named])
            except InvalidRequest as error:
                error.param = "documents"
                raise
        for ref, page in zip(named, found, strict=True):
            if page.model not in loaded.names:
                raise InvalidRequest(
                    f"page {ref.id!r} was embedded by {page.model!r}, whose vectors mean nothing to {loaded.name!r}",
                    param=ref.param,
                )
        kept = iter(found)
        # A score is one page's, so a PDF will not do.
        return [
            replace(one, pages=None)
            if isinstance(one, ImageRef)
            else next(kept).embedding
            if isinstance(one, KeptRef)
            else one
            for one in pages
        ]

    async def _each(
        self, inputs: Sequence[Input], engine: EmbedEngine, record: Record, wanted: VectorForm
    ) -> AsyncGenerator[Embedded | Refused, None]:
        opened = asyncio.Semaphore(_PAGES_AT_ONCE)
        pixels = RequestPixels(self._door.limits.max_request_pixels)

        async def pieces(one: Input) -> list[_Piece]:
            match one:
                case Embedding():
                    return [_Piece(one)]
                case Text():
                    return [_Piece(await engine.embed(one, record.caller))]
                case ImageRef():
                    await opened.acquire()  # given back by whoever takes the vectors
                    return await self._pages(one, engine, record.caller, pixels)

        asking = deque(asyncio.create_task(pieces(one)) for one in inputs)
        try:
            for index, one in enumerate(inputs):
                try:
                    # Taken out of the queue, so that vectors which have been sent are kept by nobody.
                    found = await asking.popleft()
                except _OF_ONE as error:
                    found = [_Piece(error)]
                for piece in found:
                    yield await _told(index, one, piece, record, wanted)
                if isinstance(one, ImageRef):
                    opened.release()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _pages(self, ref: ImageRef, engine: EmbedEngine, caller: str, pixels: RequestPixels) -> list[_Piece]:
        """One piece a page. Raises what concerns the file, or each of its pages."""

        async def one(page: Image | BadPage) -> _Piece:
            if isinstance(page, BadPage):
                return _Piece(page.error, page.number)
            try:
                return _Piece(await engine.embed(page, caller), page.page, page.size)
            except _OF_ONE as error:
                return _Piece(error, page.page)

        async with self._turns.turn(caller):
            with self._admission.pixels(caller, pixels) as hold:
                made = await together(one(page) for page in await self._door.open_by_page(ref, hold, caller))
        errors = [piece.made for piece in made if isinstance(piece.made, RequestError)]
        if len(errors) == len(made):
            raise errors[0]
        return made

    def _check(self, inputs: Sequence[Input | KeptRef], noun: str, *, streamed: bool = False) -> None:
        """What no model can answer."""
        self.check_count(len(inputs), noun)
        if not streamed:
            self._check_pages(sum(isinstance(one, ImageRef | KeptRef) for one in inputs), noun)

    def _check_pages(self, pages: int, noun: str) -> None:
        """Refuse more pages than an answer may have that is held as a whole."""
        if pages > self.most_pages:
            raise InvalidRequest(
                f"{noun} has {pages} pages or more; the limit is {self.most_pages} (media.max_images) where the answer"
                " is not streamed",
                param=noun,
            )


async def _compared(
    engine: EmbedEngine, queries: Sequence[Embedding], pages: Sequence[Embedding], *, pairs: bool
) -> list[float]:
    """One score a page: for the one query, or, in pairs, for the query at its own place."""
    if pairs:
        return [(await engine.score([query], [page]))[0][0] for query, page in zip(queries, pages, strict=True)]
    (values,) = await engine.score(queries, pages)
    return values


async def _told(index: int, one: Input, piece: _Piece, record: Record, wanted: VectorForm) -> Embedded | Refused:
    """The piece in the wanted form, when `record` knows of it."""
    made = piece.made
    if isinstance(made, RequestError):
        return Refused(index, made, piece.page)
    tokens, image_tokens = (0, 0) if isinstance(one, Embedding) else (made.rows, made.image.length)
    record.embedded(tokens, image_tokens)
    record.images += isinstance(one, ImageRef)
    try:
        shaped = made if wanted == VectorForm() else await asyncio.to_thread(form, made, wanted)
    except InvalidRequest as error:
        return Refused(index, error, piece.page)
    return Embedded(index, shaped, tokens, image_tokens, piece.page, piece.size)


def _check_form(call: EmbedCall) -> None:
    """Refuse what has no meaning for queries."""
    queries = any(isinstance(one, Text) for one in call.inputs)
    if queries and call.form.pool_factor > 1:
        raise Unsupported("pool_factor is for pages; send queries in a request of their own", param="pool_factor")
    if queries and call.form.image_tokens_only:
        raise Unsupported(
            "image_tokens_only is for pages; send queries in a request of their own", param="image_tokens_only"
        )
