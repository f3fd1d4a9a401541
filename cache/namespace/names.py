"""A sorted column of names: one blob of bytes and the offsets into it, instead of an object of Python per name."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

_MAX_SMALL_BLOB = 2**32 - 1


class NameColumn:
    """Immutable, sorted by bytes, without duplicates. About 4 bytes per name above the bytes of the names."""

    __slots__ = ("blob", "offsets")

    def __init__(self, blob: bytes, offsets: "array[int]") -> None:
        self.blob = blob
        self.offsets = offsets

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "NameColumn":
        """From names that are sorted already."""
        builder = NameColumnBuilder()
        builder.add(names)
        return builder.column()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.blob[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[bytes]:
        blob, start = self.blob, 0
        for end in self.offsets[1:]:
            yield blob[start:end]
            start = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NameColumn):
            return NotImplemented
        return self.blob == other.blob and self.offsets == other.offsets

    __hash__ = None  # type: ignore[assignment]

    def find(self, name: bytes) -> int:
        """The row of `name`, or -1; by bisection, 3 us among a million."""
        blob, offsets = self.blob, self.offsets
        low, high = 0, len(offsets) - 1
        while low < high:
            middle = (low + high) >> 1
            if blob[offsets[middle] : offsets[middle + 1]] < name:
                low = middle + 1
            else:
                high = middle
        if low < len(offsets) - 1 and blob[offsets[low] : offsets[low + 1]] == name:
            return low
        return -1

    @property
    def size_bytes(self) -> int:
        return len(self.blob) + len(self.offsets) * self.offsets.itemsize


class NameColumnBuilder:
    """Takes names page by page without keeping an object for each. `is_ascending`: they came sorted, none twice."""

    def __init__(self) -> None:
        self._blobs: list[bytes] = []
        self._ends = array("Q", [0])
        self._last: bytes | None = None
        self.is_ascending = True

    def add(self, names: Sequence[bytes]) -> None:
        if not names:
            return
        if self.is_ascending:
            follows = self._last is None or self._last < names[0]
            self.is_ascending = follows and all(map(bytes.__lt__, names, names[1:]))
            self._last = names[-1]
        self._blobs.append(b"".join(names))
        start = self._ends[-1]
        self._ends.extend([start + end for end in accumulate(map(len, names))])

    def column(self) -> NameColumn:
        """All names in the order in which they came; a column proper only if that was ascending."""
        blob = b"".join(self._blobs)
        offsets = array("I", self._ends) if len(blob) <= _MAX_SMALL_BLOB else self._ends
        return NameColumn(blob, offsets)
