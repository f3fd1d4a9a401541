"""What changed between two versions, as a stream of batches in path order, at the cost of the change.

Pages (and parts) are named by their content and cover a range of paths, so one that both versions have contributes no
difference and is left out unread. What remains on both sides is compared entry by entry.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from .entries import ENTRY_SCHEMA
from .labels import labels_equal
from .pages import PageId
from .reader import PageReader, row_at_or_after
from .roots import PageRef

ADDED, REMOVED, CONTENT, LABELS, DETAILS = "added", "removed", "content", "labels", "details"
CONTENT_AND_LABELS = "content+labels"

# `change` is one of the words above; old_* are null for added entries, new_* for removed ones.
DIFF_SCHEMA = pa.schema(
    [pa.field("path", pa.string()), pa.field("change", pa.string())]
    + [pa.field(f"{side}_{f.name}", f.type) for side in ("old", "new") for f in ENTRY_SCHEMA if f.name != "path"]
)
_OTHERS = [name for name in ENTRY_SCHEMA.names if name != "path"]
_CONTENT_FIELDS = ("etag", "size", "version_id", "store", "key")


@dataclass(slots=True)
class DiffSummary:
    """Counts and bytes of a diff. Bytes are those of the new content, for removed entries of the old."""

    counts: dict[str, int] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch of a diff."""
        sizes = pc.coalesce(batch.column("new_size"), batch.column("old_size"))
        table = pa.table({"change": batch.column("change"), "size": sizes})
        for row in table.group_by("change").aggregate([("size", "sum"), ("size", "count")]).to_pylist():
            change = row["change"]
            self.counts[change] = self.counts.get(change, 0) + row["size_count"]
            self.size_bytes[change] = self.size_bytes.get(change, 0) + row["size_sum"]


def diff_roots(reader: PageReader, old: PageId, new: PageId) -> Iterator[pa.RecordBatch]:
    """Batches of DIFF_SCHEMA, sorted by path; entries that are equal do not occur. Raises PageCorrupt.

    `content`: the object version differs. `labels`: only the labels do. `details`: only mtime or sha256 do.
    """
    if old == new:
        return
    old_refs, new_refs = _only_here(reader, old, new)
    old_batches = (page.batch() for _, page in reader.pages(old_refs))
    new_batches = (page.batch() for _, page in reader.pages(new_refs))
    for before, after in side_by_side(old_batches, new_batches):
        changes = _compare(before, after)
        if changes.num_rows:
            yield changes


def _only_here(reader: PageReader, old: PageId, new: PageId) -> tuple[list[PageRef], list[PageRef]]:
    """The pages that only the one and only the other version has."""
    old_parts, new_parts = reader.parts(old), reader.parts(new)
    shared = {part.id for part in old_parts} & {part.id for part in new_parts}
    old_refs = [ref for part in old_parts if part.id not in shared for ref in reader.part_refs(part)]
    new_refs = [ref for part in new_parts if part.id not in shared for ref in reader.part_refs(part)]
    same = {ref.id for ref in old_refs} & {ref.id for ref in new_refs}
    return [r for r in old_refs if r.id not in same], [r for r in new_refs if r.id not in same]


def side_by_side(
    left: Iterable[pa.RecordBatch], right: Iterable[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Cut two streams that are sorted by `path` at the same paths: pairs that cover the same range, one may be empty."""
    sides = (_Side(left), _Side(right))
    while sides[0].batch is not None or sides[1].batch is not None:
        ends = [side.batch.column("path")[-1].as_py() for side in sides if side.batch is not None]
        bound = min(ends)
        first, second = sides[0].take(bound), sides[1].take(bound)
        yield first, second


class _Side:
    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._empty: pa.RecordBatch | None = None
        self.batch: pa.RecordBatch | None = None
        self._refill()

    def take(self, bound: str) -> pa.RecordBatch:
        """The rows up to `bound`."""
        if self.batch is None:
            return self._empty if self._empty is not None else pa.RecordBatch.from_pylist([], schema=ENTRY_SCHEMA)
        batch = self.batch
        cut = row_at_or_after(batch.column("path"), bound + "\0")
        if cut < batch.num_rows:
            self.batch = batch.slice(cut)
        else:
            self._refill()
        return batch.slice(0, cut)

    def _refill(self) -> None:
        self.batch = next((batch for batch in self._batches if batch.num_rows), None)
        if self.batch is not None:
            self._empty = self.batch.slice(0, 0)


def _compare(before: pa.RecordBatch, after: pa.RecordBatch) -> pa.RecordBatch:
    old_paths, new_paths = before.column("path"), after.column("path")
    at = pc.index_in(new_paths, value_set=old_paths)
    both = pc.is_valid(at)
    gone = pc.invert(pc.is_in(old_paths, value_set=new_paths))
    kept_old, kept_new = before.take(at.drop_null()), after.filter(both)
    change = _changes(kept_old, kept_new)
    changed = pc.is_valid(change)
    pieces = [
        _rows(kept_old.filter(changed), kept_new.filter(changed), change.drop_null()),
        _rows(None, after.filter(pc.invert(both)), ADDED),
        _rows(before.filter(gone), None, REMOVED),
    ]
    table = pa.Table.from_batches([piece for piece in pieces if piece.num_rows], schema=DIFF_SCHEMA)
    if not table.num_rows:
        return pieces[1]
    return table.take(pc.sort_indices(table.column("path"))).combine_chunks().to_batches()[0]


def _changes(old: pa.RecordBatch, new: pa.RecordBatch) -> pa.Array:
    """Per row what changed, null where nothing did."""

    def same(name: str) -> pa.Array:
        left, right = old.column(name), new.column(name)
        both_null = pc.and_(pc.is_null(left), pc.is_null(right))
        return pc.or_(both_null, pc.fill_null(pc.equal(left, right), False))

    same_content = same(_CONTENT_FIELDS[0])
    for name in _CONTENT_FIELDS[1:]:
        same_content = pc.and_(same_content, same(name))
    same_labels = labels_equal(old.column("labels"), new.column("labels"))
    same_details = pc.and_(same("mtime_ns"), same("sha256"))
    nothing = pa.scalar(None, pa.string())
    return pc.if_else(
        same_content,
        pc.if_else(same_labels, pc.if_else(same_details, nothing, pa.scalar(DETAILS)), pa.scalar(LABELS)),
        pc.if_else(same_labels, pa.scalar(CONTENT), pa.scalar(CONTENT_AND_LABELS)),
    )


def _rows(old: pa.RecordBatch | None, new: pa.RecordBatch | None, change: "pa.Array | str") -> pa.RecordBatch:
    some = new if new is not None else old
    if some is None:
        raise AssertionError("one of the sides is given")
    count = some.num_rows
    words = pa.repeat(pa.scalar(change), count) if isinstance(change, str) else change
    columns = [some.column("path"), words]
    for side in (old, new):
        for name in _OTHERS:
            columns.append(pa.nulls(count, ENTRY_SCHEMA.field(name).type) if side is None else side.column(name))
    return pa.RecordBatch.from_arrays(columns, schema=DIFF_SCHEMA)


def new_side(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The new entries (ENTRY_SCHEMA) of a batch of a diff; rows of removed ones have nulls."""
    columns = [batch.column("path"), *(batch.column(f"new_{name}") for name in _OTHERS)]
    return pa.RecordBatch.from_arrays(columns, names=ENTRY_SCHEMA.names)
