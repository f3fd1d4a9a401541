"""What lives where in one slab, and which pages could be given back.

The file system frees whole pages, and small frames share them. So a page goes when the last frame in it dies, which
is found out by looking at the neighbours of a frame that just died.
"""

from collections.abc import Mapping

import numpy as np

from . import slab_file as fmt
from .index import SLAB_UNIT_BYTES


class SlabTable:
    """The frames of a slab by their place. Records that are damaged, or were never written, are no frames."""

    def __init__(self, records: fmt.Records) -> None:
        whole = fmt.verify_records(records)
        offsets = np.where(whole, records["unit"].astype(np.int64) * SLAB_UNIT_BYTES, 0)
        self._order = np.argsort(offsets, kind="stable")
        self._sorted = offsets[self._order]
        self.sizes = np.where(whole, fmt.frame_sizes(records), 0)
        self.dead = (records["flag"] == fmt.DEAD) | ~whole

    def kill(self, offset: int) -> int | None:
        """Note that the frame at `offset` is dead; the number of its record, None if that is damaged or dead already."""
        at = self._at(offset)
        if at is None:
            return None
        record = int(self._order[at])
        if self.dead[record]:
            return None
        self.dead[record] = True
        return record

    def holes(self, frames: Mapping[int, int], *, quiet: bool) -> list[tuple[int, int]]:
        """Page-aligned (offset, size) ranges in which nothing lives any more, around these dead frames (offset: size of
        the object).

        A page at the edge that a frame shares with neighbours goes too if all of them are dead. A gap between
        frames may be one that is being written just now, unless the slab is `quiet`.
        """
        found: dict[int, int] = {}
        for offset, size in frames.items():
            at = self._at(offset)
            if at is None:
                first, last = page_up(offset), page_down(offset + fmt.frame_bytes(size, 0))
            else:
                end = fmt.align(offset + int(self.sizes[self._order[at]]))
                first = page_up(self._dead_from(at, offset, page_down(offset), quiet))
                last = page_down(self._dead_until(at, end, page_up(end), quiet))
            if last > first:
                found[first] = max(last, found.get(first, 0))
        return [(first, last - first) for first, last in found.items()]

    def _at(self, offset: int) -> int | None:
        """The position of the frame at `offset` in the order of places."""
        at = int(np.searchsorted(self._sorted, offset))
        return at if at < len(self._sorted) and self._sorted[at] == offset else None

    def _dead_from(self, position: int, start: int, low: int, quiet: bool) -> int:
        """How far down, at most to `low`, nothing lives before the dead frame at `position`."""
        while start > low:
            position -= 1
            if position < 0:
                return low if quiet else start
            neighbour, offset = int(self._order[position]), int(self._sorted[position])
            end = fmt.align(offset + int(self.sizes[neighbour]))
            if not quiet and end != start:
                return start
            if not self.dead[neighbour]:
                return end
            start = offset
        return low

    def _dead_until(self, position: int, end: int, high: int, quiet: bool) -> int:
        """How far up, at most to `high`, nothing lives behind the dead frame at `position`."""
        while end < high:
            position += 1
            if position == len(self._sorted):
                return high if quiet else end
            neighbour, offset = int(self._order[position]), int(self._sorted[position])
            if not quiet and offset != end:
                return end
            if not self.dead[neighbour]:
                return offset
            end = fmt.align(offset + int(self.sizes[neighbour]))
        return high


def page_up(offset: int) -> int:
    return -(-offset // fmt.PAGE_BYTES) * fmt.PAGE_BYTES


def page_down(offset: int) -> int:
    return offset // fmt.PAGE_BYTES * fmt.PAGE_BYTES
