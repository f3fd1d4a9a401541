"""The table of blocks on disk: what a restart reads instead of opening every extent file.

    blocks     header, then a slot of 32 bytes per block of a large object, changed in place

A slot says how many chunks of a block are here and what they allocate. It is a summary for the index, the eviction
policy and the account of space; the maps beside the data stay the truth that reads go by. While a block is being
changed its slot is *unsettled*:

    write   slot unsettled, data, map, slot settled         after a kill: the few unsettled blocks are counted
    evict   slot unsettled, map, hole, slot cleared         again from their maps, and all others are right

So after kill -9 nothing else is looked at. After a power failure the order of writes means nothing: the table is only
complete if it was closed properly, or if the machine was not started anew since (the boot id says so). Nor is it to be
believed in a copy of the folder, where holes may be filled (its own inode number says so). Otherwise the
names of all files are compared with it, and those that it does not know are opened. A table with a damaged slot is
not used at all; then all files are opened once.
"""

import errno
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checksum import header_sum
from .files import OpenFile
from .index import MAX_SLOT, halves
from .space import Space

TABLE_MAGIC = b"FBBLOCKS"
TABLE_VERSION = 1
HEADER_BYTES = 4096
SLOT_BYTES = 32
SETTLED, UNSETTLED = 1, 2
# magic, format version, 1 if closed properly, slots at that time, boot id, inode of the table
_HEADER = struct.Struct("<8sHHI36sQ")
_CHECKSUM = struct.Struct("<Q")
_SLOT = struct.Struct("<QQIHHII")  # digest (two halves), block, chunks, state, bytes allocated, checksum
SLOT = np.dtype(
    [
        ("first", "<u8"), ("second", "<u8"), ("block", "<u4"), ("chunks", "<u2"),
        ("state", "<u2"), ("allocated", "<u4"), ("checksum", "<u4"),
    ]
)  # fmt: skip
assert SLOT.itemsize == _SLOT.size == SLOT_BYTES

Slots = NDArray[np.void]
# Odd constants of the slot checksum, which is plain arithmetic so that a million of them are checked at once.
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class LoadedSlots:
    """What a table said at open. `numbers` are the slots' places, in the order of `slots`. Not `complete`: there may
    be blocks that it does not know."""

    slots: Slots
    numbers: NDArray[np.int64]
    complete: bool
    damaged: bool


class BlockSlots:
    """The open table. A slot is changed by whoever holds the lock of its block's file."""

    def __init__(self, path: Path, space: Space) -> None:
        """Open or make the table; `load` comes next. Raises OSError."""
        self._space = space
        self._open_file: OpenFile | None = OpenFile(path, os.O_CREAT)
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._end = 0  # slots from here on were never given out
        self._written = 0  # and from here on never written

    def load(self) -> LoadedSlots:
        """Read the table and mark it as open. Raises OSError."""
        complete = self._is_complete()
        size = max(os.fstat(self._file.fd).st_size - HEADER_BYTES, 0) // SLOT_BYTES * SLOT_BYTES
        slots = np.frombuffer(os.pread(self._file.fd, size, HEADER_BYTES), SLOT)
        used = np.flatnonzero(slots["checksum"] | slots["state"] | slots["first"].astype(bool))
        damaged = not np.array_equal(_checksums(slots[used]), slots["checksum"][used])
        if damaged:
            os.ftruncate(self._file.fd, HEADER_BYTES)
            slots, used, complete = slots[:0], used[:0], False
        self._write_header(closed=False)
        self._space.settle(0, HEADER_BYTES + -(-len(slots) * SLOT_BYTES // HEADER_BYTES) * HEADER_BYTES)
        self._end = self._written = len(slots)
        is_free = np.ones(len(slots), bool)
        is_free[used] = False
        self._free = np.flatnonzero(is_free)[::-1].tolist()
        return LoadedSlots(slots[used], used, complete, damaged)

    def take(self) -> int:
        """A free slot. Raises OSError if there is none."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._end > MAX_SLOT:
                raise OSError(errno.ENOSPC, "the table of blocks is full", str(self._file.path))
            self._end += 1
            if self._end * SLOT_BYTES % HEADER_BYTES == SLOT_BYTES:
                self._space.settle(0, HEADER_BYTES)  # the table grows by a page
            return self._end - 1

    def put(self, slot: int, digest: bytes, block: int, chunks: int, allocated: int, state: int) -> None:
        """Write a slot. Raises OSError."""
        fields = (*halves(digest), block, chunks, state, min(max(allocated, 0), 0xFFFFFFFF))
        packed = _SLOT.pack(*fields, _checksum(*fields))
        self._file.write_at([packed], HEADER_BYTES + slot * SLOT_BYTES)
        with self._lock:
            self._written = max(self._written, slot + 1)

    def allocated(self, slot: int) -> int:
        """What the bytes of a slot's block allocate, as last written. Raises OSError."""
        packed = os.pread(self._file.fd, SLOT_BYTES, HEADER_BYTES + slot * SLOT_BYTES)
        return int(_SLOT.unpack(packed)[5]) if len(packed) == SLOT_BYTES else 0

    def clear(self, slot: int) -> None:
        """The slot's block is gone: the slot is free. Raises OSError; the slot is then lost until the next restart."""
        self._file.write_at([bytes(SLOT_BYTES)], HEADER_BYTES + slot * SLOT_BYTES)
        with self._lock:
            self._free.append(slot)

    def close(self) -> None:
        """Mark the table as closed properly, and close it. Raises OSError."""
        self._write_header(closed=True)
        self._open_file = None  # the descriptor goes when nobody is in the middle of using it

    @property
    def _file(self) -> OpenFile:
        file = self._open_file
        if file is None:
            raise OSError(errno.EBADF, "the tier is closed")
        return file

    def _is_complete(self) -> bool:
        head = os.pread(self._file.fd, _HEADER.size + _CHECKSUM.size, 0)
        if len(head) < _HEADER.size + _CHECKSUM.size:
            return False
        magic, version, closed, count, boot_id, inode = _HEADER.unpack_from(head)
        if _CHECKSUM.unpack_from(head, _HEADER.size)[0] != header_sum(head[: _HEADER.size]):
            return False
        stat = os.fstat(self._file.fd)
        if magic != TABLE_MAGIC or version != TABLE_VERSION or inode != stat.st_ino:
            return False
        if closed:
            return bool(stat.st_size >= HEADER_BYTES + count * SLOT_BYTES)
        return bool(boot_id == _boot_id())

    def _write_header(self, *, closed: bool) -> None:
        inode = os.fstat(self._file.fd).st_ino
        fixed = _HEADER.pack(TABLE_MAGIC, TABLE_VERSION, closed, self._written, _boot_id(), inode)
        self._file.write_at([(fixed + _CHECKSUM.pack(header_sum(fixed))).ljust(HEADER_BYTES, b"\0")], 0)


def _boot_id() -> bytes:
    """Names this start of the machine; 36 characters."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""


def _checksum(first: int, second: int, block: int, chunks: int, state: int, allocated: int) -> int:
    small = block << 32 | chunks << 16 | state
    mixed = first * _P1 + second * _P2 + small * _P3 + (allocated + 1) * _P1 & _MASK64
    return (mixed ^ mixed >> 31) * _P2 >> 32 & 0xFFFFFFFF


def _checksums(slots: Slots) -> NDArray[np.uint32]:
    small = slots["block"].astype(np.uint64) << np.uint64(32)
    small |= slots["chunks"].astype(np.uint64) << np.uint64(16) | slots["state"].astype(np.uint64)
    mixed = slots["first"] * np.uint64(_P1) + slots["second"] * np.uint64(_P2) + small * np.uint64(_P3)
    mixed += (slots["allocated"].astype(np.uint64) + np.uint64(1)) * np.uint64(_P1)
    mixed = (mixed ^ mixed >> np.uint64(31)) * np.uint64(_P2)
    checksums: NDArray[np.uint32] = (mixed >> np.uint64(32)).astype(np.uint32)
    return checksums
