"""Doubly linked lists over dense entry numbers, in two arrays: 8 bytes per entry, whatever the number of lists.

Each entry is in at most one list. Every list is a ring through a sentinel cell at the front of the arrays, so that
linking and unlinking have no special cases: entry `e` lives in cell `e + lists`.
"""

from array import array
from collections.abc import Sequence

import numpy as np

UNLINKED = -1
GROWTH_CELLS = 1024


class EntryLists:
    """`lists` ordered lists, named 0, 1, 2…; first is oldest. All operations are constant time, growth is amortised."""

    def __init__(self, lists: int) -> None:
        self._base = lists
        self._next = array("i", range(lists))
        self._previous = array("i", range(lists))

    def append(self, name: int, entry: int) -> None:
        """Make `entry`, which is in no list, the last of list `name`."""
        cell = entry + self._base
        self._grow_to(cell)
        assert self._next[cell] == UNLINKED, f"entry {entry} is already in a list"
        last = self._previous[name]
        self._next[last] = cell
        self._previous[cell] = last
        self._next[cell] = name
        self._previous[name] = cell

    def extend(self, name: int, entries: Sequence[int]) -> None:
        """Append many entries, which are in no list, in that order: a million in some tens of milliseconds."""
        if len(entries) == 0:
            return
        cells = np.asarray(entries, dtype=np.int32) + np.int32(self._base)
        self._grow_to(int(cells.max()))
        following = np.frombuffer(self._next, dtype=np.int32)
        preceding = np.frombuffer(self._previous, dtype=np.int32)
        assert (following[cells] == UNLINKED).all(), "an entry is already in a list"
        last = self._previous[name]
        following[last] = cells[0]
        preceding[cells[0]] = last
        following[cells[:-1]] = cells[1:]
        preceding[cells[1:]] = cells[:-1]
        following[cells[-1]] = name
        preceding[name] = cells[-1]

    def discard(self, entry: int) -> bool:
        """Take `entry` out of the list that it is in; False if it is in none."""
        cell = entry + self._base
        if cell >= len(self._next) or self._next[cell] == UNLINKED:
            return False
        following, preceding = self._next[cell], self._previous[cell]
        self._next[preceding] = following
        self._previous[following] = preceding
        self._next[cell] = UNLINKED
        return True

    def first(self, name: int) -> int | None:
        """The oldest entry of list `name`; None when it is empty."""
        cell = self._next[name]
        return None if cell == name else cell - self._base

    def __contains__(self, entry: int) -> bool:
        cell = entry + self._base
        return cell < len(self._next) and self._next[cell] != UNLINKED

    def _grow_to(self, cell: int) -> None:
        if cell >= len(self._next):
            added = max(cell + 1 - len(self._next), GROWTH_CELLS, len(self._next) // 4)
            for links in (self._next, self._previous):
                links.frombytes(b"\xff" * (links.itemsize * added))


def grow(cells: "array[int]", entry: int) -> None:
    """Lengthen a per-entry array with zeros until it has a cell for `entry`."""
    if entry >= len(cells):
        added = max(entry + 1 - len(cells), GROWTH_CELLS, len(cells) // 4)
        cells.frombytes(bytes(cells.itemsize * added))
