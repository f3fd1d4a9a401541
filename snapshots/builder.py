"""Building a version from a stream of sorted entries, with page boundaries chosen by content.

A page ends after an entry whose path hashes to one of every CUT_ONE_IN values (from MIN_ENTRIES entries on), or when it
has MAX_ENTRIES entries or MAX_WEIGHT bytes. After an end the next page starts afresh, so the cuts depend only on
the entries since the last one: an edit changes the pages around it, and from the first common cut on all further
pages are those of the version before. The same entries give the same root, in whatever way they came together.

Encoding happens in the caller's thread, storing in one other; at most WRITES_AHEAD groups of pages wait between them.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ManifestError
from .columns import encode_columns
from .entries import concat_batches
from .hashing import text_hashes
from .metastore import MetaStore
from .pages import LEAF, MAX_PAGE_BYTES, PART, ROOT, PageId, page_columns, page_id, seal
from .path_order import FilesAsFolders, first_unsorted
from .reader import PageReader
from .roots import PageRef, encode_refs, page_ref, summary_ref

MIN_ENTRIES, MAX_ENTRIES, CUT_ONE_IN = 2048, 16384, 4096
MAX_WEIGHT = 2 * 1024 * 1024
MIN_REFS, MAX_REFS, CUT_REFS_ONE_IN = 64, 1024, 256
WRITES_AHEAD = 2
_WRITE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Built:
    """A version that was stored. `new_pages` and `new_bytes` count what the store did not have before (index pages too)."""

    root: PageId
    entry_count: int
    size_bytes: int
    new_pages: int
    new_bytes: int


class PageWriter:
    """Stores pages in the background, in groups, a bounded number ahead. A failure is raised by the next call."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="forebay-store-pages")
        self._group: list[tuple[PageId, bytes]] = []
        self._group_bytes = 0
        self._waiting: deque[tuple[Future[int], int, int]] = deque()
        self.new_pages = 0
        self.new_bytes = 0

    def put(self, name: PageId, sealed: bytes) -> None:
        self._group.append((name, sealed))
        self._group_bytes += len(sealed)
        if self._group_bytes >= _WRITE_BYTES:
            self._send()

    def flush(self) -> None:
        """Returns when everything is stored."""
        if self._group:
            self._send()
        while self._waiting:
            self._settle()

    def close(self) -> None:
        """Give up what is not stored yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self) -> None:
        while len(self._waiting) >= WRITES_AHEAD:
            self._settle()
        future = self._pool.submit(self._meta.put_pages, self._group)
        self._waiting.append((future, len(self._group), self._group_bytes))
        self._group, self._group_bytes = [], 0

    def _settle(self) -> None:
        future, count, size_bytes = self._waiting.popleft()
        new = future.result()
        self.new_pages += new
        # The store says how many were new, not which: exact when all or none are, in proportion otherwise.
        self.new_bytes += size_bytes * new // count


class VersionBuilder:
    """Takes entries in path order and stores pages as they fill; `finish` stores the index and gives the root.

    A context manager: leaving it without `finish` leaves only unreachable pages, which gc collects.
    """

    def __init__(self, meta: MetaStore, reader: PageReader | None = None) -> None:
        self._reader = reader or PageReader(meta)
        self._writer = PageWriter(meta)
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._cuts: list[npt.NDArray[np.bool_]] = []
        self._weights: list[npt.NDArray[np.int64]] = []
        self._refs: list[PageRef] = []
        self._parts: list[PageRef] = []
        self._last_path: str | None = None
        self._files = FilesAsFolders()

    def __enter__(self) -> "VersionBuilder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    @property
    def at_page_start(self) -> bool:
        """Whether the next entry begins a page."""
        return self._pending_rows == 0

    @property
    def at_part_start(self) -> bool:
        """Whether the next page begins a part."""
        return self._pending_rows == 0 and not self._refs

    def add(self, batch: pa.RecordBatch) -> None:
        """Entries (ENTRY_SCHEMA) above all before. Raises ManifestError for paths out of order, twice, or below a file."""
        if not batch.num_rows:
            return
        paths = batch.column("path")
        self._check_order(paths)
        cut = text_hashes(paths) % np.uint64(CUT_ONE_IN) == 0
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._cuts.append(cut)
        self._weights.append(_weights(batch))
        if self._pending_rows >= MIN_ENTRIES or sum(int(w.sum()) for w in self._weights) >= MAX_WEIGHT:
            self._cut_pages()

    def add_page(self, ref: PageRef) -> None:
        """A whole page that ended in a cut where it comes from (every page but the last of a version)."""
        if not self.at_page_start:
            raise AssertionError("a page can only be taken over at the start of a page")
        self._check_above(ref.first)
        for file in self._files.pass_over(ref.first, ref.last):
            for other in self._reader.page(ref).column("path").to_pylist():
                if other.startswith(file + "/"):
                    raise below_file(other, file)
        self._last_path = ref.last
        self._add_ref(ref)

    def add_part(self, part: PageRef) -> None:
        """A whole part that ended in a cut where it comes from (every part but the last of a version)."""
        if not self.at_part_start:
            raise AssertionError("a part can only be taken over at the start of a part")
        if self._files.open_files:
            for ref in self._reader.part_refs(part):
                self.add_page(ref)
            return
        self._check_above(part.first)
        self._last_path = part.last
        self._parts.append(part)

    def finish(self) -> Built:
        """Store what is left and the index; returns when everything is durable."""
        if self._pending_rows:
            self._emit(concat_batches(self._pending))
            self._pending, self._pending_rows = [], 0
        if self._refs:
            self._close_part()
        data = encode_refs(ROOT, self._parts)
        if len(data) > MAX_PAGE_BYTES:
            raise ManifestError(f"the version has too many pages for one root ({len(self._parts)} parts)")
        root = page_id(data)
        self._writer.put(root, seal(data))
        self._writer.flush()
        count = sum(part.count for part in self._parts)
        size_bytes = sum(part.size_bytes for part in self._parts)
        return Built(root, count, size_bytes, self._writer.new_pages, self._writer.new_bytes)

    def _check_order(self, paths: pa.Array) -> None:
        first = paths[0].as_py()
        self._check_above(first)
        row = first_unsorted(paths)
        if row is not None:
            raise _unsorted(paths[row].as_py(), paths[row - 1].as_py())
        for row, file in self._files.below_files(paths):
            raise below_file(paths[row].as_py(), file)
        self._last_path = paths[len(paths) - 1].as_py()

    def _check_above(self, path: str) -> None:
        if self._last_path is not None and path <= self._last_path:
            raise _unsorted(path, self._last_path)

    def _cut_pages(self) -> None:
        batch = concat_batches(self._pending)
        cuts = np.flatnonzero(np.concatenate(self._cuts))
        weights = np.concatenate(self._weights)
        total = np.cumsum(weights)
        start = 0
        while (end := _page_end(start, cuts, total)) is not None:
            self._emit(batch.slice(start, end - start))
            start = end
        self._pending = [batch.slice(start)] if start < batch.num_rows else []
        self._pending_rows = batch.num_rows - start
        kept = np.zeros(self._pending_rows, np.bool_)
        kept[cuts[cuts >= start] - start] = True
        self._cuts, self._weights = [kept], [weights[start:]]

    def _emit(self, batch: pa.RecordBatch) -> None:
        columns = page_columns(batch)
        data = encode_columns(LEAF, batch.num_rows, columns)
        if len(data) > MAX_PAGE_BYTES:
            path = batch.column("path")[0].as_py()
            raise ManifestError(f"the entries from {path!r} on are too large for a page ({len(data)} bytes)")
        name = page_id(data)
        self._writer.put(name, seal(data))
        self._add_ref(page_ref(name, columns))

    def _add_ref(self, ref: PageRef) -> None:
        self._refs.append(ref)
        cut = int.from_bytes(ref.id[:8], "little") % CUT_REFS_ONE_IN == 0
        if (cut and len(self._refs) >= MIN_REFS) or len(self._refs) >= MAX_REFS:
            self._close_part()

    def _close_part(self) -> None:
        data = encode_refs(PART, self._refs)
        name = page_id(data)
        self._writer.put(name, seal(data))
        self._parts.append(summary_ref(name, self._refs))
        self._refs = []


def _page_end(start: int, cuts: npt.NDArray[np.int64], total: npt.NDArray[np.int64]) -> int | None:
    """The row after the last one of the page that starts at `start`; None when its end is not known yet."""
    ends = [start + MAX_ENTRIES]
    at = int(np.searchsorted(cuts, start + MIN_ENTRIES - 1))
    if at < len(cuts):
        ends.append(int(cuts[at]) + 1)
    before = int(total[start - 1]) if start else 0
    ends.append(int(np.searchsorted(total, before + MAX_WEIGHT)) + 1)
    end = min(ends)
    return end if end <= len(total) else None


def _weights(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Roughly the bytes of each entry in a page; part of the page format, since it decides cuts."""
    weights = np.full(batch.num_rows, 64, np.int64)
    for name in ("path", "key", "labels"):
        weights += np.asarray(pc.fill_null(pc.binary_length(batch.column(name)), 0))
    return weights


def _unsorted(path: str, before: str) -> ManifestError:
    if path == before:
        return ManifestError(f"the path {path!r} occurs twice")
    return ManifestError(f"the path {path!r} comes after {before!r}, out of order")


def below_file(path: str, file: str) -> ManifestError:
    """The error for a path that lies below a file."""
    return ManifestError(f"the path {path!r} needs a folder {file!r}, but that is a file")


def empty_root(meta: MetaStore) -> PageId:
    """The root of a version without entries, stored."""
    with VersionBuilder(meta) as builder:
        return builder.finish().root
