"""Which entries a tier holds and where: a hash table in arrays, about 35 bytes per entry.

A node caches tens of millions of small objects; as Python objects they would take gigabytes of heap. Here an entry
is a *row* of three columns (two halves of its digest, and its location packed into 64 bits) and a slot of an
open-addressing table (4 bytes at a load between 0.3 and 0.6). Row numbers are what eviction policies see.

Readers take no lock. What they need is one tuple, replaced as a whole when the table grows, and a row is published by
writing its location last and its slot after that. A reader may so miss an entry added at the same moment, or find a
row that was just removed and given to another entry; it then reads bytes whose checksum, seeded with the digest, does
not verify. So a stale answer costs a miss, never wrong bytes.

A removed slot becomes a tombstone (moving neighbours would make readers miss them); a rebuild sweeps them out.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MASK64 = (1 << 64) - 1
NOT_FOUND = -1

_EMPTY = -1
_TOMBSTONE = -2
_MAX_LOAD = 0.6
_MIN_SLOTS = 1024
# Odd constant that spreads the blocks of one object over the table; 0 for block 0 leaves the digest as it is.
_BLOCK_STEP = 0xD6E8FEB86659FD93
_REBUILD_STRIDE = 65536
_HALVES = struct.Struct("<QQ")

U64 = NDArray[np.uint64]
_Table = tuple[memoryview, int, memoryview, memoryview, memoryview]


def halves(digest: bytes) -> tuple[int, int]:
    """The two 64-bit halves of a digest."""
    first, second = _HALVES.unpack(digest)
    return first, second


def key_of(digest: bytes, block: int) -> tuple[int, int]:
    """The key of one block of a large object; of block 0 (and of a small object) it is the digest itself."""
    first, second = _HALVES.unpack(digest)
    return first ^ (block * _BLOCK_STEP & MASK64), second


def first_keys(first: U64, block: U64) -> U64:
    """The first halves of `key_of` of many; the second halves are those of the digests."""
    return first ^ block * np.uint64(_BLOCK_STEP)


def unique_keys(first: U64, second: U64) -> NDArray[np.int64] | None:
    """Indexes of the first of each key, ascending; None if all keys are different (which is found out quickly)."""
    ordered = np.sort(first)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    keys = np.stack((first, second), axis=1)
    return np.sort(np.unique(keys, axis=0, return_index=True)[1])


def digest_of(first: int, second: int, block: int) -> bytes:
    """The way back from `key_of`."""
    return _HALVES.pack(first ^ (block * _BLOCK_STEP & MASK64), second)


# --- Locations: what a row says about where its bytes are. 0 means: no bytes yet. ----------------------------
# small object:  0 | slab number 20 bits | offset / 64 in 22 bits | size 21 bits
# block:         1 | block index 31 bits | slot in the table of blocks 24 bits | chunks present 8 bits

_BLOCK_FLAG = 1 << 63
SLAB_UNIT_BYTES = 64
MAX_SLAB_NUMBER = (1 << 20) - 1
MAX_SLOT = (1 << 24) - 1


def small_location(slab: int, offset: int, size: int) -> int:
    return slab << 43 | offset // SLAB_UNIT_BYTES << 21 | size


def small_parts(location: int) -> tuple[int, int, int]:
    """(slab number, offset of the frame, size of the object)."""
    return location >> 43, (location >> 21 & 0x3FFFFF) * SLAB_UNIT_BYTES, location & 0x1FFFFF


def block_location(block: int, slot: int, chunks: int) -> int:
    return _BLOCK_FLAG | block << 32 | slot << 8 | chunks


def block_locations(block: U64, slot: U64, chunks: U64) -> U64:
    """`block_location` of many."""
    return np.uint64(_BLOCK_FLAG) | block << np.uint64(32) | slot << np.uint64(8) | chunks


def is_block(location: int) -> bool:
    return location >= _BLOCK_FLAG


def block_parts(location: int) -> tuple[int, int]:
    """(block index, chunks present)."""
    return location >> 32 & 0x7FFFFFFF, location & 0xFF


def block_slot(location: int) -> int:
    return location >> 8 & MAX_SLOT


class EntryIndex:
    """The table. `find` and `location` from any thread; everything else by one thread at a time (the tier's lock)."""

    def __init__(self) -> None:
        self._rows = 0  # rows ever handed out; those above were never used
        self._count = 0  # rows that are findable
        self._tombstones = 0
        self._free_head = NOT_FOUND
        self._capacity = 0
        self._first: U64 = np.empty(0, np.uint64)
        self._second: U64 = np.empty(0, np.uint64)
        self._location: U64 = np.empty(0, np.uint64)
        self._slots: NDArray[np.int32] = np.full(_MIN_SLOTS, _EMPTY, np.int32)
        self._grow_rows(_MIN_SLOTS // 2)

    def __len__(self) -> int:
        return self._count

    def find(self, first: int, second: int) -> int:
        """The row of a key, or NOT_FOUND."""
        slots, mask, firsts, seconds, _ = self._table
        position = first & mask
        while True:
            row: int = slots[position]
            if row >= 0:
                if firsts[row] == first and seconds[row] == second:
                    return row
            elif row == _EMPTY:
                return NOT_FOUND
            position = (position + 1) & mask

    def location(self, row: int) -> int:
        """Where the bytes of a row are; 0 if it has none (any more)."""
        location: int = self._table[4][row]
        return location

    def key(self, row: int) -> tuple[int, int]:
        return self._table[2][row], self._table[3][row]

    def new_row(self) -> int:
        """A row that is not findable yet; end with `publish` or `release`."""
        if self._free_head != NOT_FOUND:
            row = self._free_head
            self._free_head = int(self._first[row]) - 1
            return row
        if self._rows == self._capacity:
            self._grow_rows(self._capacity + self._capacity // 2)
        self._rows += 1
        return self._rows - 1

    def publish(self, row: int, first: int, second: int, location: int) -> None:
        """Make a new row findable. The key must not be in the table."""
        assert location != 0
        if (self._count + self._tombstones + 1) > len(self._slots) * _MAX_LOAD:
            self._rebuild()
        slots, mask, firsts, seconds, locations = self._table
        firsts[row], seconds[row], locations[row] = first, second, location
        position = first & mask
        while slots[position] >= 0:
            position = (position + 1) & mask
        if slots[position] == _TOMBSTONE:
            self._tombstones -= 1
        slots[position] = row
        self._count += 1

    def relocate(self, row: int, location: int) -> None:
        """The bytes of a findable row are now elsewhere, or more of them are there."""
        assert location != 0
        self._table[4][row] = location

    def unpublish(self, row: int) -> None:
        """Nobody finds the row any more; its number is not reused before `release`."""
        slots, mask, firsts, _, locations = self._table
        position = firsts[row] & mask
        while slots[position] != row:
            assert slots[position] != _EMPTY
            position = (position + 1) & mask
        # Next to an empty slot no chain passes through: it can be empty too.
        if slots[(position + 1) & mask] == _EMPTY:
            slots[position] = _EMPTY
        else:
            slots[position] = _TOMBSTONE
            self._tombstones += 1
        locations[row] = 0
        self._count -= 1

    def release(self, row: int) -> None:
        """The number of an unfindable row may be given to another entry."""
        self._location[row] = 0
        self._first[row] = self._free_head + 1
        self._free_head = row

    def add_many(self, first: U64, second: U64, location: U64) -> NDArray[np.int64]:
        """Rows for many keys at once (restart): about 10 M a second. Keys must be new and all different."""
        count = len(first)
        if self._rows + count > self._capacity:
            self._grow_rows(self._rows + count)
        start, self._rows = self._rows, self._rows + count
        self._first[start : self._rows] = first
        self._second[start : self._rows] = second
        self._location[start : self._rows] = location
        rows = np.arange(start, self._rows, dtype=np.int64)
        if (self._count + self._tombstones + count) > len(self._slots) * _MAX_LOAD:
            self._count += count
            self._rebuild()
        else:
            self._count += count
            _insert(self._slots, self._first, rows.astype(np.int32))
        return rows

    def rows_where(self, low: int, high: int) -> NDArray[np.int64]:
        """Rows whose location is in [low, high), ascending."""
        locations = self._location[: self._rows]
        return np.flatnonzero((locations >= low) & (locations < high))

    def columns(self) -> Iterator[tuple[U64, U64, U64]]:
        """Copies of (first, second, location) of all rows with bytes, in pieces."""
        for start in range(0, self._rows, _REBUILD_STRIDE):
            end = min(start + _REBUILD_STRIDE, self._rows)
            live = np.flatnonzero(self._location[start:end]) + start
            yield self._first[live], self._second[live], self._location[live]

    def validate(self) -> None:
        """Recount everything; AssertionError if the table contradicts itself."""
        used = self._slots[self._slots >= 0]
        live = np.flatnonzero(self._location[: self._rows])
        assert len(used) == self._count == len(live), (len(used), self._count, len(live))
        assert np.array_equal(np.sort(used), live)
        assert int((self._slots == _TOMBSTONE).sum()) == self._tombstones
        for row in live[:: max(len(live) // 1000, 1)].tolist():
            assert self.find(*self.key(row)) == row

    def _grow_rows(self, capacity: int) -> None:
        for name in ("_first", "_second", "_location"):
            grown = np.zeros(capacity, np.uint64)
            grown[: self._rows] = getattr(self, name)[: self._rows]
            setattr(self, name, grown)
        self._capacity = capacity
        self._publish_table()

    def _rebuild(self) -> None:
        """New slots: as many as the findable rows need, without tombstones."""
        size = _MIN_SLOTS
        while self._count + 1 > size * _MAX_LOAD / 1.25:
            size *= 2
        slots = np.full(size, _EMPTY, np.int32)
        live = np.flatnonzero(self._location[: self._rows]).astype(np.int32)
        for start in range(0, len(live), _REBUILD_STRIDE):
            _insert(slots, self._first, live[start : start + _REBUILD_STRIDE])
        self._slots = slots
        self._tombstones = 0
        self._publish_table()

    def _publish_table(self) -> None:
        self._table: _Table = (
            self._slots.data,
            len(self._slots) - 1,
            self._first.data,
            self._second.data,
            self._location.data,
        )


def _insert(slots: NDArray[np.int32], firsts: U64, rows: NDArray[np.int32]) -> None:
    """Put rows into their slots, all at once: everyone tries its position, those who lost it try the next."""
    mask = np.uint64(len(slots) - 1)
    positions = (firsts[rows] & mask).astype(np.int64)
    while len(rows):
        free = slots[positions] < 0
        slots[positions[free]] = rows[free]
        lost = slots[positions] != rows
        rows = rows[lost]
        positions = (positions[lost] + 1) & int(mask)
