"""What must hold of the sequence of paths of a version: sorted, none twice, and no file that is also a folder.

In byte order everything that begins with the text of a path follows directly after it, so a file `a` can only
clash with `a/x` while all paths in between begin with `a`. That makes the check a streaming one: a file stays a
candidate only for as long as the next paths begin with its text, which for nearly all files is no path at all.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .columns import string_parts
from .reader import row_at_or_after


def first_unsorted(paths: pa.Array) -> int | None:
    """The first row whose path is not above that of the row before; None when all are in strict order."""
    if len(paths) < 2:
        return None
    rising = pc.less(paths.slice(0, len(paths) - 1), paths.slice(1))
    row = pc.index(rising, False).as_py()
    return None if row < 0 else row + 1


class FilesAsFolders:
    """Finds paths that lie below a file, over a stream of batches in path order."""

    def __init__(self) -> None:
        self._open: list[str] = []

    @property
    def open_files(self) -> list[str]:
        """Files whose text every path so far has begun with since: only these can still clash with what follows."""
        return self._open

    def below_files(self, paths: pa.Array) -> Iterator[tuple[int, str]]:
        """(row, file) of every path that lies below a file of this or an earlier batch. Exhaust it before the next batch."""
        if not len(paths):
            return
        last = paths[len(paths) - 1].as_py()
        candidates = self._open + [paths[row].as_py() for row in _begins_next(paths).tolist()] + [last]
        self._open = [file for file in candidates if last.startswith(file)]
        for file in candidates:
            for row in range(row_at_or_after(paths, file + "/"), len(paths)):
                if not paths[row].as_py().startswith(file + "/"):
                    break
                yield row, file

    def pass_over(self, first: str, last: str) -> list[str]:
        """Account for a page that was not read, with these end paths; returns the open files that it may clash with."""
        suspects = [file for file in self._open if last >= file + "/" and first < file + "0"]
        self._open = [file for file in self._open if last.startswith(file)]
        return suspects


def _begins_next(paths: pa.Array) -> npt.NDArray[np.int64]:
    """Rows whose path is the beginning of the next row's path."""
    offsets, data = string_parts(paths)
    lengths = np.diff(offsets)
    rows = np.flatnonzero((lengths[:-1] < lengths[1:]) & (lengths[:-1] > 0))
    # One byte rules out nearly all; the few that are left are compared whole.
    ends = offsets[rows] + lengths[rows] - 1
    rows = rows[data[ends] == data[offsets[rows + 1] + lengths[rows] - 1]]
    whole = [row for row in rows.tolist() if paths[row + 1].as_py().startswith(paths[row].as_py())]
    return np.array(whole, np.int64)
