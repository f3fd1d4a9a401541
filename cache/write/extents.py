"""Which byte ranges of a file are in its data file: a sorted set of intervals, pure.

Intervals are half-open, disjoint and never touch, so that a file written front to back is one interval however many
writes it took.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Extents:
    __slots__ = ("_ends", "_starts")

    def __init__(self, flat: Sequence[int] = ()) -> None:
        """From `flat()` of another: start, end, start, end..."""
        self._starts = list(flat[0::2])
        self._ends = list(flat[1::2])

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        if self._ends and start == self._ends[-1]:
            self._ends[-1] = end  # appending: by far the most common case
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def cut(self, size: int) -> None:
        """Forget everything at and after `size`."""
        keep = bisect_left(self._starts, size)
        del self._starts[keep:], self._ends[keep:]
        if self._ends and self._ends[-1] > size:
            self._ends[-1] = size

    def pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """The range cut at the borders of intervals: (offset, size, whether it is in an interval), in order, complete."""
        end = offset + size
        index = bisect_right(self._ends, offset)
        while offset < end:
            if index == len(self._starts) or self._starts[index] >= end:
                yield offset, end - offset, False
                return
            if self._starts[index] > offset:
                yield offset, self._starts[index] - offset, False
                offset = self._starts[index]
            stop = min(self._ends[index], end)
            yield offset, stop - offset, True
            offset = stop
            index += 1

    def covers(self, offset: int, size: int) -> bool:
        return size <= 0 or all(inside for _, _, inside in self.pieces(offset, size))

    def missing(self, offset: int, size: int) -> int:
        """How many bytes of the range are in no interval."""
        return sum(length for _, length, inside in self.pieces(offset, size) if not inside)

    def touches(self, offset: int, size: int) -> bool:
        """Whether any byte of the range is in an interval."""
        return any(inside for _, _, inside in self.pieces(offset, size))

    def gaps(self) -> list[tuple[int, int]]:
        """(offset, size) of what lies between intervals."""
        return [(end, start - end) for end, start in zip(self._ends, self._starts[1:], strict=False)]

    @property
    def total_bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    @property
    def start(self) -> int:
        """The first byte held; 0 if there is none."""
        return self._starts[0] if self._starts else 0

    @property
    def end(self) -> int:
        """One past the last byte held; 0 if there is none."""
        return self._ends[-1] if self._ends else 0

    def flat(self) -> tuple[int, ...]:
        return tuple(value for pair in zip(self._starts, self._ends, strict=True) for value in pair)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def copy(self) -> "Extents":
        return Extents(self.flat())

    @staticmethod
    def flat_bytes(flat: Iterable[int]) -> int:
        """`total_bytes` of a flat form, without building the object."""
        total = 0
        sign = -1
        for value in flat:
            total += sign * value
            sign = -sign
        return total
