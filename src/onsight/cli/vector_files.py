"""Pages' vectors in one file: numpy's .npz, or Parquet. docs/search.md says what stands in them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from onsight.core.embedding import Embedding, ImageSpan
from onsight.core.errors import StartError
from onsight.core.geometry import Size
from onsight.index.pages import KeptPage

Columns = dict[str, Any]
"""One entry a page in each: `model`, `path`, `page` (0 is a picture), `sha256`, `size` [2], `image` [3] (start, length,
columns), `rows`; and `vectors` [all rows, dims], page after page."""


class VectorFile:
    """What stands in the file already, and what is added; it is written as a whole when it is closed."""

    def __init__(self, path: Path) -> None:
        """Raises StartError for a file that cannot be read, or another's."""
        self._path = path
        self._is_parquet = path.suffix == ".parquet"
        if self._is_parquet and importlib.util.find_spec("pyarrow") is None:
            raise StartError("Parquet is written by pyarrow, which is not installed: pip install 'onsight[search]'")
        self._files: dict[str, dict[str, KeptPage]] = {}
        if path.exists():
            self.add(self._read())
        self._changed = False

    def prepare(self, model: str, dims: int) -> None:
        """Raises StartError when the file holds vectors of another model."""
        for page in self._every():
            if (page.model, page.embedding.dims) != (model, dims):
                raise StartError(
                    f"{self._path} holds vectors of {page.model!r}, which mean nothing beside those of {model!r}: write"
                    " to another file"
                )

    def known(self, file: str, digest: str) -> frozenset[int | None]:
        """Which pages of a file are there, as it is now."""
        return frozenset(page.page for page in self._files.get(file, {}).values() if page.digest == digest)

    def add(self, pages: Sequence[KeptPage]) -> None:
        """Keep pages; what was kept of their files when these held something else goes."""
        for page in pages:
            held = self._files.setdefault(page.file, {})
            if next(iter(held.values()), page).digest != page.digest:
                held.clear()
            held[page.id] = page
            self._changed = True

    def _every(self) -> list[KeptPage]:
        return [page for held in self._files.values() for page in held.values()]

    def close(self) -> None:
        """Write the file, if anything is new. Raises StartError when that cannot be."""
        if not self._changed:
            return
        # First beside it, so that what stood there is whole whatever happens.
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            columns = _columns(self._every())
            _write_parquet(new, columns) if self._is_parquet else _write_npz(new, columns)
            os.replace(new, self._path)
        except OSError as error:
            raise StartError(f"{self._path} cannot be written: {error}") from None
        self._changed = False

    def _read(self) -> list[KeptPage]:
        try:
            return list(_pages(_read_parquet(self._path) if self._is_parquet else _read_npz(self._path)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StartError(
                f"{self._path} is there, but no file of pages' vectors ({error}): write to another one"
            ) from None


def _columns(pages: Sequence[KeptPage]) -> Columns:
    vectors = [numpy.frombuffer(one.embedding.values, "<f4").reshape(-1, one.embedding.dims) for one in pages]
    spans = [one.embedding.image for one in pages]
    return {
        "model": [one.model for one in pages],
        "path": [one.file for one in pages],
        "page": [one.page or 0 for one in pages],
        "sha256": [one.digest for one in pages],
        "size": [(one.size.width, one.size.height) for one in pages],
        "image": [(span.start, span.length, span.columns) for span in spans],
        "rows": [one.embedding.rows for one in pages],
        "vectors": numpy.concatenate(vectors),
    }


def _pages(columns: Columns) -> Iterable[KeptPage]:
    vectors = columns["vectors"]
    start = 0
    names = ("model", "path", "page", "sha256", "size", "image", "rows")
    for model, path, page, digest, size, image, rows in zip(*(columns[name] for name in names), strict=True):
        span = ImageSpan(*(int(number) for number in image))
        part = numpy.ascontiguousarray(vectors[start : start + rows], numpy.float32)
        start += rows
        embedding = Embedding(part.tobytes(), part.shape[0], part.shape[1], span)
        yield KeptPage(str(path), int(page) or None, str(digest), Size(*map(int, size)), str(model), embedding)


def _write_npz(path: Path, columns: Columns) -> None:
    with path.open("wb") as file:
        numpy.savez(file, allow_pickle=False, **{name: numpy.asarray(values) for name, values in columns.items()})


def _read_npz(path: Path) -> Columns:
    with numpy.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _write_parquet(path: Path, columns: Columns) -> None:
    import pyarrow
    import pyarrow.parquet

    vectors, rows = columns["vectors"], columns["rows"]
    numbers = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
    pages = pyarrow.ListArray.from_arrays(pyarrow.array(numpy.cumsum([0, *rows]), pyarrow.int32()), numbers)
    arrays = {name: pyarrow.array(values) for name, values in columns.items() if name not in ("vectors", "rows")}
    pyarrow.parquet.write_table(pyarrow.table({**arrays, "vectors": pages}), path)


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).combine_chunks()
        pages = table.column("vectors").combine_chunks()
        dims = pages.type.value_type.list_size
    except (pyarrow.ArrowException, AttributeError) as error:
        raise ValueError(str(error)) from None
    found: Columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "vectors"}
    found["rows"] = pages.value_lengths().to_pylist()
    found["vectors"] = pages.flatten().flatten().to_numpy().reshape(-1, dims)
    return found
