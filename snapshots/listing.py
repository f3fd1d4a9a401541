"""`ls` inside a version, and its statistics: sums over pages, reading only those that have to be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .entries import Entry, entries_of
from .labels import Place, place_of
from .pages import Page, PageId
from .reader import PageReader

MAX_VALUES_PER_LABEL = 1000
MAX_FOLDERS = 10_000
OTHER_VALUES = "(other values)"


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """A folder in a listing, with what lies below it."""

    name: str
    entry_count: int
    size_bytes: int


def list_folder(reader: PageReader, root: PageId, folder: str) -> Iterator[FolderEntry | Entry]:
    """What lies directly in `folder` ("" is the root), sorted by the bytes of the path; files as entries.

    A file's own path lists that file; nothing is yielded for a path that is not there. Pages that lie wholly in one
    subfolder are counted unread. Raises PageCorrupt.
    """
    folder = folder.strip("/")
    if folder and (found := reader.find(root, folder)) is not None:
        yield entries_of(found)[0]
        return
    low = f"{folder}/" if folder else ""
    high = f"{folder}0" if folder else None
    at: tuple[str, int, int] | None = None
    for ref in reader.refs(root, low, high):
        inside = ref.first.startswith(low) and ref.last.startswith(low)
        first, last = (path[len(low) :].partition("/") for path in (ref.first, ref.last))
        if inside and first[1] and last[1] and first[0] == last[0]:
            groups: list[tuple[str, int, int, Entry | None]] = [(first[0], ref.count, ref.size_bytes, None)]
        else:
            groups = list(_children(reader.page(ref), low))
        for name, count, size_bytes, entry in groups:
            if at is not None and at[0] != name:
                yield FolderEntry(*at)
                at = None
            if entry is not None:
                yield entry
            else:
                at = (name, (at[1] if at else 0) + count, (at[2] if at else 0) + size_bytes)
    if at is not None:
        yield FolderEntry(*at)


def _children(page: Page, low: str) -> Iterator[tuple[str, int, int, Entry | None]]:
    """(name, entries, bytes, entry if it is a file) of what lies in `low`, neighbours in the same subfolder together."""
    batch = page.batch()
    batch = batch.filter(pc.starts_with(batch.column("path"), low)) if low else batch
    if not batch.num_rows:
        return
    rest = pc.utf8_slice_codeunits(batch.column("path"), len(low))
    names = pc.replace_substring_regex(rest, "(?s)/.*$", "/")
    starts = np.flatnonzero(
        np.concatenate([[True], np.asarray(pc.not_equal(names.slice(1), names.slice(0, len(names) - 1)))])
    )
    ends = [*starts[1:].tolist(), batch.num_rows]
    sizes = np.asarray(batch.column("size"))
    for start, end in zip(starts.tolist(), ends, strict=True):
        name = names[start].as_py()
        if name.endswith("/"):
            yield name[:-1], end - start, int(sizes[start:end].sum()), None
        else:
            yield name, 1, int(sizes[start]), entries_of(batch.slice(start, 1))[0]


@dataclass(slots=True)
class Tally:
    """Entries and bytes."""

    entry_count: int = 0
    size_bytes: int = 0

    def add(self, count: int, size_bytes: int) -> None:
        self.entry_count += count
        self.size_bytes += size_bytes


@dataclass(slots=True)
class Statistics:
    """`labels`: per label (keys joined by dots) and value; `folders`: per folder down to the depth asked for;
    `sizes`: per upper bound in bytes (powers of two; 0 for empty objects)."""

    total: Tally = field(default_factory=Tally)
    labels: dict[str, dict[str, Tally]] = field(default_factory=dict)
    folders: dict[str, Tally] = field(default_factory=dict)
    sizes: dict[int, Tally] = field(default_factory=dict)
    unlabelled: Tally = field(default_factory=Tally)


def statistics(reader: PageReader, root: PageId, *, folder_depth: int = 1) -> Statistics:
    """Counts and bytes of a version. Labels with very many values keep the first MAX_VALUES_PER_LABEL of them apart.

    Numeric labels are counted by value too. Raises PageCorrupt.
    """
    found = Statistics()
    for _, page in reader.pages(reader.refs(root)):
        sizes = page.column("size")
        found.total.add(page.row_count, int(pc.sum(sizes).as_py() or 0))
        _add_sizes(found.sizes, np.asarray(sizes))
        folders = pc.replace_substring_regex(page.column("path"), _folder_regex(folder_depth), r"\1")
        for name, count, size_bytes in _grouped(folders, sizes):
            key = name if name in found.folders or len(found.folders) < MAX_FOLDERS else "(other folders)"
            found.folders.setdefault(key, Tally()).add(count, size_bytes)
        labelled = np.zeros(page.row_count, np.bool_)
        for column_name in sorted(page.label_columns):
            place = place_of(column_name)
            if place is not None:
                column = page.stored_label(column_name)
                labelled |= np.asarray(pc.is_valid(column))
                _add_label(found.labels, place[0], column, sizes)
        if page.residual is not None:
            labelled |= np.asarray(pc.is_valid(page.residual))
        found.unlabelled.add(int((~labelled).sum()), int(np.asarray(sizes)[~labelled].sum()))
    return found


def _folder_regex(depth: int) -> str:
    """Matches a whole path; group 1 is its folder cut to `depth` components ("" for files at the root)."""
    return r"(?s)^((?:[^/]*/){0,%d}).*$" % max(depth, 1)  # noqa: UP031


def _add_label(labels: dict[str, dict[str, Tally]], place: Place, column: pa.Array, sizes: pa.Array) -> None:
    values = labels.setdefault(".".join(place), {})
    for value, count, size_bytes in _grouped(column.cast(pa.string()), sizes):
        key = value if value in values or len(values) < MAX_VALUES_PER_LABEL else OTHER_VALUES
        values.setdefault(key, Tally()).add(count, size_bytes)


def _grouped(keys: pa.Array, sizes: pa.Array) -> Iterator[tuple[str, int, int]]:
    keys, sizes = keys.drop_null(), sizes.filter(pc.is_valid(keys))
    table = pa.table({"key": keys, "size": sizes}).group_by("key")
    for row in table.aggregate([("size", "count"), ("size", "sum")]).to_pylist():
        yield row["key"], row["size_count"], row["size_sum"]


def _add_sizes(sizes: dict[int, Tally], values: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    # The exponent of the least power of two that is not below the size.
    exponents = np.where(values > 0, np.ceil(np.log2(np.maximum(values, 1).astype(np.float64))), -1).astype(np.int64)
    for exponent in np.unique(exponents).tolist():
        mine = exponents == exponent
        bound = 0 if exponent < 0 else 1 << exponent
        sizes.setdefault(bound, Tally()).add(int(mine.sum()), int(values[mine].sum()))
