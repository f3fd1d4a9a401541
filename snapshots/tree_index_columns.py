"""Column files: how a tree index lies on disk, and how it is mapped back.

A tree index is a folder of flat files, one per column, in the byte order of x86 and ARM (little-endian). Flat
files can be written as a stream, without knowing the number of rows, and mapped without reading them. Two shapes:

    numbers    NAME               one fixed-width number per row
    texts      NAME, NAME.at      the bytes of all rows end to end; row i is [at[i], at[i+1])

A text column of which every row is empty has no files: what a dataset does not use costs it nothing.

Nothing here is atomic; `tree_index_build` writes into a folder of its own and renames it when all is synced.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

WRITE_BUFFER_BYTES: Final = 1 << 20
CHECK_BUFFER_BYTES: Final = 4 << 20
# The codes of `struct`, `memoryview.cast` and (prefixed with "<") numpy mean the same here.
ITEM_BYTES: Final = {"B": 1, "H": 2, "I": 4, "Q": 8, "q": 8}

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """What the header records of one file: the type of its numbers, how many there are, and XXH3-64 of its bytes."""

    typecode: str
    count: int
    checksum: str

    @property
    def size_bytes(self) -> int:
        return self.count * ITEM_BYTES[self.typecode]


class NumberWriter:
    """Appends numbers to the file `name`."""

    def __init__(self, folder: Path, name: str, typecode: str) -> None:
        self.name = name
        self.typecode = typecode
        self.count = 0
        self._file = (folder / name).open("wb", buffering=WRITE_BUFFER_BYTES)

    def append(self, values: Numbers) -> None:
        data = np.ascontiguousarray(values, dtype="<" + self.typecode)
        self._file.write(data.data)
        self.count += len(data)

    def close(self) -> None:
        self._file.close()


class TextWriter:
    """Appends texts (bytes) to the files `name` and `name.at`, which begin to exist with the first text that is not empty."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.count = 0
        self._folder = folder
        self._size_bytes = 0
        self._blob: NumberWriter | None = None
        self._at: NumberWriter | None = None

    def append_empty(self, count: int) -> None:
        """`count` rows without text."""
        if self._at is not None:
            self._at.append(np.full(count, self._size_bytes, "<Q"))
        self.count += count

    def append(self, blob: bytes | memoryview | Numbers, lengths: Numbers) -> None:
        """Rows whose bytes lie end to end in `blob`."""
        if not len(blob):
            self.append_empty(len(lengths))
            return
        if self._blob is None or self._at is None:
            self._blob = NumberWriter(self._folder, self.name, "B")
            self._at = NumberWriter(self._folder, self.name + ".at", "Q")
            self._at.append(np.zeros(self.count + 1, "<Q"))
        ends = np.cumsum(lengths, dtype=np.uint64)
        ends += np.uint64(self._size_bytes)
        self._blob.append(np.frombuffer(blob, np.uint8))
        self._at.append(ends)
        self._size_bytes += len(blob)
        self.count += len(lengths)

    def append_list(self, texts: Sequence[bytes]) -> None:
        self.append(b"".join(texts), np.fromiter(map(len, texts), np.uint64, len(texts)))

    def close(self) -> None:
        for writer in (self._blob, self._at):
            if writer is not None:
                writer.close()


def map_numbers(path: Path, typecode: str) -> Numbers:
    """A number column as a read-only array that takes no heap; for building (numpy refuses to map an empty file)."""
    if path.stat().st_size == 0:
        return np.zeros(0, "<" + typecode)
    return np.memmap(path, "<" + typecode, "r")


def checksum_of(path: Path) -> str:
    """XXH3-64 of a file, read (not mapped) so that checking a large index adds nothing to the size of the process."""
    hasher = xxhash.xxh3_64()
    buffer = bytearray(CHECK_BUFFER_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return hasher.hexdigest()


def seal(path: Path, typecode: str) -> ColumnFile:
    """Sync a finished file to disk and describe it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        size_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return ColumnFile(typecode, size_bytes // ITEM_BYTES[typecode], checksum_of(path))


class Mapping:
    """A file mapped for reading, as a sequence of numbers. Items and slices (`tolist`) come as Python's own numbers:
    a single item costs 40 ns, a third of numpy's."""

    def __init__(self, path: Path, typecode: str) -> None:
        self._map: mmap.mmap | None = None
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map if self._map is not None else b"")
        self.items: memoryview = self._bytes.cast(typecode)  # type: ignore[call-overload]

    def close(self) -> None:
        self.items.release()
        self._bytes.release()
        if self._map is not None:
            self._map.close()


class TextMapping:
    """The rows of a text column; every row is empty if the column has no files."""

    def __init__(self, folder: Path, name: str, files: dict[str, ColumnFile]) -> None:
        self._blob = Mapping(folder / name, "B") if name in files else None
        self._at = Mapping(folder / (name + ".at"), "Q") if name in files else None

    def __getitem__(self, row: int) -> bytes:
        if self._blob is None or self._at is None:
            return b""
        at = self._at.items
        return bytes(self._blob.items[at[row] : at[row + 1]])

    def rows(self, start: int, stop: int) -> list[bytes]:
        """Rows [start, stop), decoded together: about 0.1 us each."""
        if self._blob is None or self._at is None:
            return [b""] * (stop - start)
        ends = self._at.items[start : stop + 1].tolist()
        base = ends[0]
        data = bytes(self._blob.items[base : ends[-1]])
        return [data[a - base : b - base] for a, b in pairwise(ends)]

    def close(self) -> None:
        for mapping in (self._blob, self._at):
            if mapping is not None:
                mapping.close()
