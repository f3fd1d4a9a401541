"""Three-way merge by path: what `theirs` changed since the common ancestor, applied to `ours`.

A path that both changed, to different things, is a conflict: it is reported, and either nothing is published or one side
is taken for all of them. A path that both changed to the same thing is no conflict.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SnapshotError
from .diff import REMOVED, diff_roots, new_side, side_by_side
from .edits import EDIT_SCHEMA
from .entries import ENTRY_SCHEMA
from .pages import PageId
from .reader import PageReader

OnConflict: TypeAlias = Literal["fail", "ours", "theirs"]
MAX_LISTED = 1000


class MergeConflict(SnapshotError):
    """Both sides changed the same paths to different things; nothing was published. `conflicts` lists the first."""

    kind = "merge_conflict"
    exit_code = 57

    def __init__(self, conflicts: "Conflicts") -> None:
        first = conflicts.listed[0]
        more = f" and {conflicts.count - 1} more" if conflicts.count > 1 else ""
        super().__init__(
            f"both sides changed {first.path!r} (ours: {first.ours}, theirs: {first.theirs}){more}",
            remedy="change one side first, or take one side for all with --on-conflict ours|theirs",
        )
        self.conflicts = conflicts


@dataclass(frozen=True, slots=True)
class Conflict:
    """`ours` and `theirs` are the words of diff.py for what each side did."""

    path: str
    ours: str
    theirs: str


@dataclass(slots=True)
class Conflicts:
    """All conflicts are counted, the first MAX_LISTED are kept."""

    count: int = 0
    listed: list[Conflict] = field(default_factory=list)


def merge_edits(
    reader: PageReader, base: PageId, ours: PageId, theirs: PageId, on_conflict: OnConflict, conflicts: Conflicts
) -> Iterator[pa.RecordBatch]:
    """Edits (EDIT_SCHEMA, sorted) that bring their changes into `ours`. Fills `conflicts` while it is read."""
    for mine, other in side_by_side(diff_roots(reader, base, ours), diff_roots(reader, base, theirs)):
        if not other.num_rows:
            continue
        if mine.num_rows:
            other = _without_conflicts(mine, other, on_conflict, conflicts)
        if other.num_rows:
            yield _as_edits(other)


def _without_conflicts(
    mine: pa.RecordBatch, other: pa.RecordBatch, on_conflict: OnConflict, conflicts: Conflicts
) -> pa.RecordBatch:
    at = pc.index_in(other.column("path"), value_set=mine.column("path"))
    rows = np.flatnonzero(np.asarray(pc.is_valid(at)))
    if not len(rows):
        return other
    dropped = np.zeros(other.num_rows, np.bool_)
    counterparts = new_side(mine.take(at.drop_null())).to_pylist()
    wanted = new_side(other.take(pa.array(rows))).to_pylist()
    mine_changes = mine.column("change").take(at.drop_null()).to_pylist()
    for row, ours, theirs, our_change in zip(rows.tolist(), counterparts, wanted, mine_changes, strict=True):
        if ours == theirs:
            dropped[row] = True
            continue
        conflicts.count += 1
        if len(conflicts.listed) < MAX_LISTED:
            conflicts.listed.append(Conflict(theirs["path"], our_change, other.column("change")[row].as_py()))
        dropped[row] = on_conflict != "theirs"
    return other.filter(pa.array(~dropped))


def _as_edits(changes: pa.RecordBatch) -> pa.RecordBatch:
    entries = new_side(changes)
    columns = [pc.equal(changes.column("change"), REMOVED), *(entries.column(name) for name in ENTRY_SCHEMA.names)]
    return pa.RecordBatch.from_arrays(columns, schema=EDIT_SCHEMA)
