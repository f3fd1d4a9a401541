"""From a manifest to the sorted, complete, checked entries of a version, as a stream.

    blocks of lines -> parsed batches -> path order -> no duplicates, no files as folders -> looked up -> batches

Every stage drops the lines it cannot use into `Rejects`, which either stops the import with the first one or writes
them down and goes on. Nothing is visible before the caller publishes, so an import that dies leaves only
unreachable pages; started again it stores the same pages under the same names and only the rest is new.

Entries that are in order are not spooled: a file is read on the assumption that it is sorted, and read again with an external sort
when that turns out wrong. A pipe, or a manifest whose objects have to be looked up one by one, is spooled at once.
"""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ManifestError
from ..tiers.understore import ListPage, ObjectInfo
from .entries import ENTRY_SCHEMA
from .locate import Location, Locator, UrlMap
from .manifest import LineFault, ManifestParser, ParsedBlock
from .manifest_source import ManifestSource
from .object_listing import ListingParser
from .path_order import FilesAsFolders
from .sorting import in_path_order, is_sorted_after

T = TypeVar("T")
OnError: TypeAlias = Literal["stop", "skip"]
RESOLVE_ROWS = 2000


@dataclass(frozen=True, slots=True)
class ObjectName:
    """An object whose size and etag are wanted; `version_id` when a certain version of it is."""

    store: str
    key: str
    version_id: str | None = None


# Looks many objects up at once. One answer per name, in order: what the store has, or why it is not usable (a text).
Resolver: TypeAlias = Callable[[Sequence[ObjectName]], Sequence[ObjectInfo | str]]


@dataclass(slots=True)
class ImportProgress:
    """How far an import is: lines read, entries passed on, lines rejected, bytes read of the file (total None: unknown)."""

    lines: int = 0
    entries: int = 0
    rejected: int = 0
    read_bytes: int = 0
    total_bytes: int | None = None


Progress: TypeAlias = Callable[[ImportProgress], None]


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """How a manifest is read.

    `base`: where URLs without a scheme (keys) are. `locator`, `resolve`: see locate.py and `Resolver`. `rejects`: the file that
    gets the skipped lines, JSON lines of line, reason and text. `spool_folder`: for external sorts.
    """

    on_error: OnError = "stop"
    rejects: Path | None = None
    base: Location | None = None
    locator: Locator | None = None
    resolve: Resolver | None = None
    ignore_unknown: bool = False
    spool_folder: Path | None = None
    progress: Progress | None = None


class Rejects:
    """What becomes of lines that cannot be used. A context manager; the file is made with the first rejected line."""

    def __init__(self, source_name: str, on_error: OnError, path: Path | None, *, unit: str = "line") -> None:
        self._unit = unit
        self._source_name = source_name
        self._on_error = on_error
        self._path = path
        self._file: IO[str] | None = None
        self.count = 0

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, fault: LineFault) -> None:
        """Raises ManifestError when the import stops at errors."""
        if self._on_error == "stop":
            raise ManifestError(
                f"{self._source_name}, {self._unit} {fault.line}: {fault.reason}",
                remedy=f"correct it, or leave out every {self._unit} like it with --on-error skip",
            )
        self.count += 1
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8", errors="surrogateescape")
            record = {self._unit: fault.line, "reason": fault.reason, "text": fault.text}
            self._file.write(json.dumps(record, ensure_ascii=True) + "\n")
        except OSError as error:
            raise ManifestError(
                f"cannot write the rejected lines to {self._path}: {error.strerror or error}"
            ) from error


class _NotSorted(Exception):
    """The manifest was read as if it were sorted, and is not."""


class ManifestImport:
    """One reading of one manifest. `entries()` is the stream; counts are in `progress` while and after it runs."""

    def __init__(self, source: str | Path | BinaryIO, options: ManifestOptions) -> None:
        self._source = source
        self._options = options
        self.progress = ImportProgress()

    @property
    def _can_reread(self) -> bool:
        """Whether reading again from the start is possible: an ordinary file, no pipe."""
        return isinstance(self._source, str | Path) and str(self._source) != "-" and os.path.isfile(self._source)

    def run(self, consume: Callable[[Iterator[pa.RecordBatch]], T]) -> T:
        """What `consume` makes of the stream of ENTRY_SCHEMA batches, strictly sorted by path.

        It may be called a second time, with the stream from the start. Raises ManifestError.
        """
        if self._can_reread:
            try:
                with contextlib.closing(self._entries(spool=False)) as entries:
                    return consume(entries)
            except _NotSorted:
                pass
        with contextlib.closing(self._entries(spool=True)) as entries:
            return consume(entries)

    def _entries(self, *, spool: bool) -> Generator[pa.RecordBatch, None, None]:
        options = self._options
        with (
            ManifestSource(self._source) as source,
            Rejects(source.name, options.on_error, options.rejects) as rejects,
        ):
            self.progress = ImportProgress(total_bytes=source.total_bytes)
            lines = self._parsed(source, rejects)
            ordered = in_path_order(lines, folder=options.spool_folder) if spool else self._assumed_sorted(lines)
            # Closed by name: an error behind it keeps its frame alive, and with it the folder of the sort.
            with contextlib.closing(ordered):
                for batch in _without_clashes(ordered, rejects):
                    complete = _looked_up(batch, options.resolve, rejects)
                    self.progress.entries += complete.num_rows
                    self._report(source, rejects)
                    yield complete.select(ENTRY_SCHEMA.names)
            self._report(source, rejects)

    def _parsed(self, source: ManifestSource, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        options = self._options
        parser = ManifestParser(UrlMap(options.locator, options.base), ignore_unknown=options.ignore_unknown)
        for block in source.blocks():
            parsed: ParsedBlock = parser.parse(block)
            for fault in parsed.faults:
                rejects.add(fault)
            self.progress.lines += parsed.batch.num_rows + len(parsed.faults)
            self._report(source, rejects)
            yield parsed.batch

    def _assumed_sorted(self, batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch, None, None]:
        last: str | None = None
        for number, batch in enumerate(batches):
            if not batch.num_rows:
                continue
            if not is_sorted_after(batch, last) or (number == 0 and _incomplete(batch).any()):
                raise _NotSorted
            last = batch.column("path")[batch.num_rows - 1].as_py()
            yield batch

    def _report(self, source: ManifestSource, rejects: Rejects) -> None:
        self.progress.rejected = rejects.count
        self.progress.read_bytes = source.read_bytes()
        if self._options.progress is not None:
            self._options.progress(self.progress)


def entries_of_listing(
    pages: Iterable[ListPage], parser: ListingParser, name: str, options: ManifestOptions, progress: ImportProgress
) -> Generator[pa.RecordBatch, None, None]:
    """The entries of a listing, like those of a manifest. `name` is the listing's for messages. Raises ManifestError."""
    with Rejects(name, options.on_error, options.rejects, unit="object") as rejects:

        def parsed() -> Iterator[pa.RecordBatch]:
            for page in pages:
                block = parser.parse(page)
                for fault in block.faults:
                    rejects.add(fault)
                progress.lines += len(page.keys)
                progress.rejected = rejects.count
                if options.progress is not None:
                    options.progress(progress)
                yield block.batch

        with contextlib.closing(in_path_order(parsed(), folder=options.spool_folder)) as ordered:
            for batch in _without_clashes(ordered, rejects):
                progress.entries += batch.num_rows
                progress.rejected = rejects.count
                yield batch.select(ENTRY_SCHEMA.names)


def _without_clashes(batches: Iterator[pa.RecordBatch], rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """The rows without those whose path is there already, or lies below a file."""
    files = FilesAsFolders()
    last: tuple[str, int] | None = None
    file_lines: dict[str, int] = {}
    for batch in batches:
        paths, lines = batch.column("path"), batch.column("line")
        dropped: dict[int, str] = {}
        same = np.zeros(len(paths), np.bool_)
        if len(paths) > 1:
            same[1:] = np.asarray(pc.equal(paths.slice(1), paths.slice(0, len(paths) - 1)))
        same[0] = last is not None and last[0] == paths[0].as_py()
        original = last[1] if last else 0
        for row in np.flatnonzero(same).tolist():
            if row and not same[row - 1]:
                original = lines[row - 1].as_py()
            dropped[row] = f"the path {paths[row].as_py()!r} is already that of line {original}"
        end = len(paths) - 1
        if not same[end]:
            original = lines[end].as_py()
        last = (paths[end].as_py(), original)
        kept = paths.filter(pa.array(~same)) if dropped else paths
        kept_rows = np.flatnonzero(~same)
        for row, file in files.below_files(kept):
            path = kept[row].as_py()
            where = f" (line {file_lines[file]})" if file in file_lines else _line_of(file, paths, lines)
            dropped[int(kept_rows[row])] = f"the path {path!r} needs a folder {file!r}, but that is a file{where}"
        file_lines = {file: file_lines.get(file) or _number(file, paths, lines) for file in files.open_files}
        for row, reason in sorted(dropped.items()):
            rejects.add(LineFault(lines[row].as_py(), reason, paths[row].as_py()))
        if dropped:
            good = np.ones(len(paths), np.bool_)
            good[list(dropped)] = False
            batch = batch.filter(pa.array(good))
        if batch.num_rows:
            yield batch


def _number(path: str, paths: pa.Array, lines: pa.Array) -> int:
    row = pc.index(paths, path).as_py()
    return 0 if row < 0 else int(lines[row].as_py())


def _line_of(path: str, paths: pa.Array, lines: pa.Array) -> str:
    number = _number(path, paths, lines)
    return f" (line {number})" if number else ""


def _incomplete(batch: pa.RecordBatch) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    missing: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.asarray(
        pc.or_(pc.is_null(batch.column("size")), pc.is_null(batch.column("etag")))
    )
    return missing


def _looked_up(batch: pa.RecordBatch, resolve: Resolver | None, rejects: Rejects) -> pa.RecordBatch:
    """The batch with sizes and etags filled in by `resolve`, without the rows for which that is not possible."""
    rows = np.flatnonzero(_incomplete(batch)).tolist()
    if not rows:
        return batch
    columns = {name: batch.column(name).to_pylist() for name in ("store", "key", "version_id", "size", "etag", "line")}
    mtimes = batch.column("mtime_ns").to_pylist()
    good = np.ones(batch.num_rows, np.bool_)
    for start in range(0, len(rows), RESOLVE_ROWS):
        some = rows[start : start + RESOLVE_ROWS]
        names = [ObjectName(columns["store"][r], columns["key"][r], columns["version_id"][r]) for r in some]
        answers: Sequence[ObjectInfo | str]
        if resolve is None:
            answers = ["size or etag is missing, and no store was given to look it up in"] * len(some)
        else:
            answers = resolve(names)
        for row, answer in zip(some, answers, strict=True):
            reason = (
                answer if isinstance(answer, str) else _mismatch(answer, columns["size"][row], columns["etag"][row])
            )
            if reason or isinstance(answer, str):
                good[row] = False
                rejects.add(LineFault(columns["line"][row], reason or "", columns["key"][row]))
                continue
            columns["size"][row], columns["etag"][row] = answer.size, answer.etag
            columns["version_id"][row] = columns["version_id"][row] or answer.version_id
            if mtimes[row] is None:
                mtimes[row] = answer.mtime_ns
    for name, values, type_ in (
        ("size", columns["size"], pa.int64()),
        ("etag", columns["etag"], pa.string()),
        ("version_id", columns["version_id"], pa.string()),
        ("mtime_ns", mtimes, pa.int64()),
    ):
        batch = batch.set_column(batch.schema.get_field_index(name), name, pa.array(values, type_))
    return batch if good.all() else batch.filter(pa.array(good))


def _mismatch(found: ObjectInfo, size: int | None, etag: str | None) -> str | None:
    if size is not None and size != found.size:
        return f"the line says {size} bytes, the store has {found.size} under {found.key!r}"
    if etag is not None and etag != found.etag:
        return f"the line says etag {etag!r}, the store has {found.etag!r} under {found.key!r}"
    return None
