"""One folder of a bucket as columns: a million files in about 60 MB, found by bisection, never changed once made.

Files and sub-folders are two sorted runs, as the store gives them; so nothing has to be merged or sorted again. A file
whose name is also a folder's (`a` beside `a/b`) is left out and reported: the folder wins, since it may hold many.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .names import NameColumn

ETAG_BYTES = 16
# What `find` answers instead of the row of a file.
IS_ABSENT = -1
IS_FOLDER = -2


class Entry(NamedTuple):
    """One name of a folder. Of a sub-folder only the name is known: size 0, no etag, no time."""

    name: bytes
    is_folder: bool
    size: int = 0
    etag: str = ""
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """Keys of a folder that no path can name: how many by reason, and a few of them as examples."""

    counts: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


NOTHING_SKIPPED = Skipped()


class FolderListing:
    """Immutable. Rows of files are 0 ... len(files) - 1, those of folders likewise in their own column.

    Etags of 32 hex digits take 16 bytes; others are kept as text in `odd_etags`.
    """

    __slots__ = ("_etags", "_odd_etags", "files", "folders", "mtimes_ns", "sizes", "skipped")

    def __init__(
        self,
        files: NameColumn,
        sizes: "array[int]",
        mtimes_ns: "array[int]",
        etags: bytes,
        odd_etags: Mapping[int, str],
        folders: NameColumn,
        skipped: Skipped = NOTHING_SKIPPED,
    ) -> None:
        self.files = files
        self.sizes = sizes
        self.mtimes_ns = mtimes_ns
        self.folders = folders
        self.skipped = skipped
        self._etags = etags
        self._odd_etags = odd_etags

    def __len__(self) -> int:
        return len(self.files) + len(self.folders)

    def etag(self, row: int) -> str:
        odd = self._odd_etags.get(row)
        return odd if odd is not None else self._etags[row * ETAG_BYTES : (row + 1) * ETAG_BYTES].hex()

    def file(self, row: int) -> Entry:
        return Entry(self.files[row], False, self.sizes[row], self.etag(row), self.mtimes_ns[row])

    def find(self, name: bytes) -> int:
        """The row of the file of that name, or IS_FOLDER, or IS_ABSENT."""
        if len(self.folders) and self.folders.find(name) >= 0:
            return IS_FOLDER
        return self.files.find(name)

    def is_same(self, other: "FolderListing") -> bool:
        """Whether the two say the same of every name."""
        return (
            self.files == other.files
            and self.folders == other.folders
            and self.sizes == other.sizes
            and self.mtimes_ns == other.mtimes_ns
            and self._etags == other._etags
            and self._odd_etags == other._odd_etags
            and self.skipped == other.skipped
        )

    def rows_in(self, newer: "FolderListing") -> npt.NDArray[np.int64]:
        """For each file row here, the row in `newer` with the same name *and version*, or -1."""
        if self.files == newer.files:
            rows = np.arange(len(self.files), dtype=np.int64)
        else:
            rows = _merge(self.files, newer.files)
        there = np.flatnonzero(rows >= 0)
        if len(there):
            sizes, newer_sizes = np.frombuffer(self.sizes, np.int64), np.frombuffer(newer.sizes, np.int64)
            etags = np.frombuffer(self._etags, np.uint64).reshape(-1, 2)
            newer_etags = np.frombuffer(newer._etags, np.uint64).reshape(-1, 2)
            partner = rows[there]
            same = (sizes[there] == newer_sizes[partner]) & (etags[there] == newer_etags[partner]).all(axis=1)
            rows[there[~same]] = -1
            for row in self._odd_etags.keys() | {int(r) for r in _partners(rows, newer._odd_etags)}:
                if rows[row] >= 0 and self.etag(row) != newer.etag(int(rows[row])):
                    rows[row] = -1
        return rows

    @property
    def size_bytes(self) -> int:
        """Memory in bytes, near enough."""
        columns = len(self.sizes) * (self.sizes.itemsize + self.mtimes_ns.itemsize) + len(self._etags)
        return 800 + self.files.size_bytes + self.folders.size_bytes + columns + 120 * len(self._odd_etags)


def _partners(rows: npt.NDArray[np.int64], odd_rows: Mapping[int, str]) -> npt.NDArray[np.int64]:
    """Rows whose partner is one of `odd_rows`."""
    if not odd_rows:
        return np.empty(0, np.int64)
    return np.flatnonzero(np.isin(rows, np.fromiter(odd_rows, np.int64)))


def _merge(older: NameColumn, newer: NameColumn) -> npt.NDArray[np.int64]:
    """For each name of `older` its row in `newer`, or -1: one pass over both."""
    rows = np.full(len(older), -1, dtype=np.int64)
    names = enumerate(newer)
    row, name = next(names, (-1, b""))
    for older_row, wanted in enumerate(older):
        while row >= 0 and name < wanted:
            row, name = next(names, (-1, b""))
        if row < 0:
            break
        if name == wanted:
            rows[older_row] = row
    return rows
