"""A version from another one and a list of changes, at the cost of the changes.

Edits are batches of EDIT_SCHEMA: an entry, and whether it is to be put (added or replaced) or removed by path; sorted by
path, no path twice. Parts and pages that no edit touches are taken over unread; pages that are touched are read,
changed and cut anew until the cuts agree with the old ones again.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ManifestError
from .builder import Built, VersionBuilder, below_file
from .entries import ENTRY_SCHEMA
from .metastore import MetaStore
from .pages import PageId
from .path_order import first_unsorted
from .reader import PageReader, row_at_or_after
from .roots import PageRef

EDIT_SCHEMA = pa.schema(
    [
        pa.field("remove", pa.bool_(), nullable=False),
        *(pa.field(field.name, field.type, nullable=field.name != "path") for field in ENTRY_SCHEMA),
    ]
)


@dataclass(slots=True)
class EditCounts:
    """What the edits did. `absent` counts removals of paths that were not there."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    absent: int = 0


def puts(entries: pa.RecordBatch) -> pa.RecordBatch:
    """Edits that add or replace these entries."""
    remove = pa.array(np.zeros(entries.num_rows, np.bool_))
    columns = [remove, *(entries.column(name) for name in ENTRY_SCHEMA.names)]
    return pa.RecordBatch.from_arrays(columns, schema=EDIT_SCHEMA)


def removals(paths: pa.Array) -> pa.RecordBatch:
    """Edits that remove these paths."""
    remove = pa.array(np.ones(len(paths), np.bool_))
    nothing = [pa.nulls(len(paths), field.type) for field in ENTRY_SCHEMA][1:]
    return pa.RecordBatch.from_arrays([remove, paths, *nothing], schema=EDIT_SCHEMA)


class _EditStream:
    """Takes edits off a sorted stream by range of path."""

    def __init__(self, edits: Iterable[pa.RecordBatch]) -> None:
        self._edits = iter(edits)
        self._batch: pa.RecordBatch | None = None
        self._at = 0
        self._last: str | None = None
        self._refill()

    def next_path(self) -> str | None:
        """The path of the next edit, None at the end."""
        return None if self._batch is None else self._batch.column("path")[self._at].as_py()

    def take_below(self, high: str | None) -> Iterator[pa.RecordBatch]:
        """Take the edits with a path below `high` (None: all that are left)."""
        while self._batch is not None:
            paths = self._batch.column("path")
            end = len(paths) if high is None else row_at_or_after(paths, high, self._at)
            if end > self._at:
                yield self._batch.slice(self._at, end - self._at)
                self._at = end
            if end < len(paths):
                return
            self._refill()

    def _refill(self) -> None:
        self._at = 0
        self._batch = next((batch for batch in self._edits if batch.num_rows), None)
        if self._batch is None:
            return
        paths = self._batch.column("path")
        if first_unsorted(paths) is not None or (self._last is not None and paths[0].as_py() <= self._last):
            raise AssertionError("edits must be sorted by path, no path twice")
        self._last = paths[len(paths) - 1].as_py()


class _AncestorFiles:
    """Whether a folder that an edit needs is a file of the base, in a page that is taken over unread."""

    def __init__(self, reader: PageReader, root: PageId) -> None:
        self._reader = reader
        self._root = root
        self._known: set[str] = set()

    def check(self, put_paths: pa.Array, removed: frozenset[str]) -> None:
        """Raises ManifestError when a path lies below a file of the base that is not among the `removed`."""
        folders = pc.unique(pc.replace_substring_regex(put_paths, "/?[^/]*$", "")).to_pylist()
        wanted: set[str] = set()
        for folder in folders:
            while folder and folder not in wanted and folder not in self._known:
                wanted.add(folder)
                folder = folder.rpartition("/")[0]
        for folder in sorted(wanted - removed):
            if self._reader.find(self._root, folder) is not None:
                raise below_file(folder + "/...", folder)
        # Kept only as a shortcut for neighbouring batches, so the set is bounded by starting afresh.
        self._known = wanted if len(self._known) > 100_000 else self._known | wanted


def apply_edits(
    meta: MetaStore, reader: PageReader, root: PageId, edits: Iterable[pa.RecordBatch]
) -> tuple[Built, EditCounts]:
    """Store the version that comes out of `root` and the edits; publishing it is the caller's.

    Raises ManifestError when a put path is impossible beside the other paths, PageCorrupt when the base is damaged.
    """
    counts = EditCounts()
    stream = _EditStream(edits)
    ancestors = _AncestorFiles(reader, root)
    with VersionBuilder(meta, reader) as builder:
        parts = reader.parts(root)
        for part_number, part in enumerate(parts):
            next_path = stream.next_path()
            is_last_part = part_number == len(parts) - 1
            untouched = next_path is None or next_path > part.last
            if untouched and builder.at_part_start and not is_last_part:
                builder.add_part(part)
                continue
            refs = reader.part_refs(part)
            for number, ref in enumerate(refs):
                is_last = is_last_part and number == len(refs) - 1
                _edit_page(builder, reader, stream, ancestors, ref, is_last=is_last, counts=counts)
        for batch in stream.take_below(None):
            _insert(builder, ancestors, batch, counts)
        return builder.finish(), counts


def _edit_page(
    builder: VersionBuilder,
    reader: PageReader,
    stream: _EditStream,
    ancestors: _AncestorFiles,
    ref: PageRef,
    *,
    is_last: bool,
    counts: EditCounts,
) -> None:
    for batch in stream.take_below(ref.first):
        _insert(builder, ancestors, batch, counts)
    next_path = stream.next_path()
    untouched = next_path is None or next_path > ref.last
    # The last page may have ended for want of entries; if more are to come it has to be cut again.
    if untouched and builder.at_page_start and (not is_last or next_path is None):
        builder.add_page(ref)
        return
    rows = reader.page(ref).batch()
    for edit in stream.take_below(ref.last + "\0"):
        rows = _merge(builder, ancestors, rows, edit, counts)
    builder.add(rows)


def _insert(builder: VersionBuilder, ancestors: _AncestorFiles, edit: pa.RecordBatch, counts: EditCounts) -> None:
    put, removed = _split(edit)
    counts.absent += len(removed)
    counts.added += put.num_rows
    ancestors.check(put.column("path"), frozenset(removed.to_pylist()))
    builder.add(put)


def _merge(
    builder: VersionBuilder, ancestors: _AncestorFiles, rows: pa.RecordBatch, edit: pa.RecordBatch, counts: EditCounts
) -> pa.RecordBatch:
    """The rows of a page after an edit batch; hands the builder those that no later edit of the page can change."""
    put, removed = _split(edit)
    paths = rows.column("path")
    replaced = int(pc.sum(pc.is_in(put.column("path"), value_set=paths)).as_py() or 0)
    gone = int(pc.sum(pc.is_in(removed, value_set=paths)).as_py() or 0)
    counts.replaced += replaced
    counts.added += put.num_rows - replaced
    counts.removed += gone
    counts.absent += len(removed) - gone
    ancestors.check(put.column("path"), frozenset(removed.to_pylist()))
    touched = pc.is_in(paths, value_set=edit.column("path"))
    merged = pa.Table.from_batches([rows.filter(pc.invert(touched)), put])
    merged = merged.take(pc.sort_indices(merged.column("path"))).combine_chunks()
    batch = merged.to_batches()[0] if merged.num_rows else put.slice(0, 0)
    cut = row_at_or_after(batch.column("path"), edit.column("path")[edit.num_rows - 1].as_py() + "\0")
    builder.add(batch.slice(0, cut))
    return batch.slice(cut)


def _split(edit: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Array]:
    """(entries to put, paths to remove) of a batch of edits."""
    remove = edit.column("remove")
    entries = pa.RecordBatch.from_arrays([edit.column(name) for name in ENTRY_SCHEMA.names], schema=ENTRY_SCHEMA)
    if not pc.any(remove).as_py():
        return entries, pa.array([], pa.string())
    return entries.filter(pc.invert(remove)), edit.column("path").filter(remove)


def sorted_edits(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Edits that fit in memory, brought into order. Raises ManifestError when a path is edited twice."""
    batches = [batch for batch in batches if batch.num_rows]
    if not batches:
        return iter(())
    table = pa.Table.from_batches(batches)
    table = table.take(pc.sort_indices(table.column("path"))).combine_chunks()
    paths = table.column("path").combine_chunks()
    row = first_unsorted(paths)
    if row is not None:
        raise ManifestError(f"the path {paths[row].as_py()!r} is changed twice at once")
    return itertools.chain(table.to_batches())
