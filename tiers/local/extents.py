"""Large objects: read, written and evicted by chunks and blocks of their extent files.

The order of steps is what makes a crash at any moment harmless:

    write   data, then the map's entries, then the row        a crash leaves data that no entry vouches for
    evict   the row, then the map's entries, then the hole    a crash leaves data that no entry vouches for

and an entry is a checksum, so even if the disk reorders the two (power loss), the chunk does not verify: a miss.

Readers take no lock. A read that finds something odd (an entry that should be there is not, a checksum that does
not match) is repeated under the lock of the file, where it cannot be a race with a writer or an eviction; what is
still wrong there is damage, and is dropped.
"""

import contextlib
import os
from collections.abc import Callable

import numpy as np

from ...errors import TierFull
from ..understore import Buffer
from ..version import BLOCK_BYTES, CHUNK_BYTES, ObjectVersion, blocks_of_range, split_by_block
from .block_slots import SETTLED, UNSETTLED, BlockSlots
from .direct import SMALLEST_BYTES, DirectReads, DirectWrites, on_tmpfs
from .entries import Entries, OnEvict, Victim
from .extent_files import BLOCK_ENTRIES_BYTES, ENTRY_BYTES, Extent, ExtentFiles, chunks_in_block
from .files import OpenFile
from .gate import Gate
from .health import Health
from .index import NOT_FOUND, block_location, block_parts, block_slot
from .space import Space

# Beyond the bytes themselves a write may allocate the map's entries and the file system's own extent blocks.
_WRITE_SLACK_BYTES = BLOCK_ENTRIES_BYTES + 12 * 1024
# And the first one of an object two folders' blocks and the header.
_CREATE_SLACK_BYTES = 24 * 1024
# What the file system may still count for a data file in which nothing is left (a block of its extent tree).
_EMPTY_FILE_BYTES = 16 * 1024


def write_need_bytes(version: ObjectVersion, size: int) -> int:
    """An upper bound of what writing `size` bytes of this object can allocate."""
    blocks = len(blocks_of_range(0, size)) + 1
    return -(-size // 4096) * 4096 + blocks * _WRITE_SLACK_BYTES + _CREATE_SLACK_BYTES + len(version.key)


class Extents:
    """All large objects of a tier."""

    def __init__(
        self, files: ExtentFiles, slots: BlockSlots, entries: Entries, space: Space, health: Health, gate: Gate
    ) -> None:
        self._files = files
        self._slots = slots
        self._entries = entries
        self._space = space
        self._health = health
        self._gate = gate
        self._direct = DirectWrites(files.folder)
        self._direct_reads = DirectReads(files.folder)
        self._is_on_disk = not on_tmpfs(files.folder)
        self.count = 0

    # --- Reading: no lock, few operations. ---

    def read(
        self, version: ObjectVersion, offset: int, size: int, meanwhile: Callable[[], None] | None = None
    ) -> Buffer | None:
        """The verified bytes, or None if any of them is not here. The range is inside the object and not empty.

        `meanwhile` is called once the bytes are known to be here, while the disk gets them."""
        if self._is_on_disk and size < SMALLEST_BYTES and (extent := self._files.get(version.digest)) is not None:
            # The disk begins with a small read now, and we look up meanwhile what else it takes: 7 of 84 µs.
            os.posix_fadvise(extent.data.fd, offset, size, os.POSIX_FADV_WILLNEED)
        entries = self._entries
        for block in range(offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES + 1):
            row = entries.find(version.digest, block)
            if row == NOT_FOUND:
                return None
            entries.hit(row)
        if meanwhile is not None:
            meanwhile()
        return self._read_verified(version, offset, size)

    def _read_verified(self, version: ObjectVersion, offset: int, size: int) -> Buffer | None:
        extent = self._files.get(version.digest) or self._open(version)
        if extent is None:
            return None
        grain_bytes = extent.grain_bytes
        first = offset // grain_bytes
        count = (offset + size - 1) // grain_bytes + 1 - first
        start = first * grain_bytes
        length = min(count * grain_bytes, version.size - start)
        sums = extent.sums(first, count)
        data = self._read_data(extent, start, length)
        if extent.sums_of(first, data) != sums or len(data) != length:
            return self._examine(version, offset, size, is_absent=_has_absent(sums, count))
        if length == size:
            return data
        return memoryview(data)[offset - start : offset - start + size]

    def _read_data(self, extent: Extent, start: int, length: int) -> Buffer:
        is_large = length >= SMALLEST_BYTES
        if is_large is not extent.reads_are_large:
            extent.reads_are_large = is_large
        if is_large:
            if extent.direct is None:
                extent.direct = self._direct_reads.open(extent.data)
            data = self._direct_reads.read(extent.data, extent.direct, start, length)
            if data is not None:
                return data
        return os.pread(extent.data.fd, length, start)

    def missing(self, version: ObjectVersion, offset: int, size: int) -> list[tuple[int, int]]:
        """Chunk-aligned ranges of [offset, offset + size) that are not here, ascending, joined where they touch."""
        found: list[tuple[int, int]] = []

        def add(first: int, last: int) -> None:
            start, end = first * CHUNK_BYTES, min(last * CHUNK_BYTES, version.size)
            if found and found[-1][0] + found[-1][1] == start:
                start, _ = found.pop()
            found.append((start, end - start))

        for block, piece_offset, length in split_by_block(offset, size):
            first, last = piece_offset // CHUNK_BYTES, -(-(piece_offset + length) // CHUNK_BYTES)
            row = self._entries.find(version.digest, block)
            chunks = block_parts(self._entries.location(row))[1] if row != NOT_FOUND else 0
            if chunks == chunks_in_block(version.size, block):
                continue
            extent = (self._files.get(version.digest) or self._open(version)) if chunks else None
            if extent is None:
                add(first, last)
                continue
            for chunk in np.flatnonzero(~extent.present(first, last - first)).tolist():
                add(first + chunk, first + chunk + 1)
        return found

    def block_bytes(self, version: ObjectVersion) -> list[tuple[int, int]]:
        """(block, bytes present in it) of the blocks of which anything is here."""
        found = []
        for block in range(version.block_count):
            row = self._entries.find(version.digest, block)
            if row == NOT_FOUND:
                continue
            chunks = block_parts(self._entries.location(row))[1]
            start, length = version.block_range(block)
            if chunks == chunks_in_block(version.size, block):
                found.append((block, length))
            else:
                found.append((block, length - sum(gap for _, gap in self.missing(version, start, length))))
        return found

    def readahead(self, version: ObjectVersion, offset: int, size: int) -> None:
        """Fetch the range into the page cache, unless it will be read around it."""
        extent = self._files.get(version.digest)
        if extent is not None and not (extent.reads_are_large and extent.direct is not None):
            os.posix_fadvise(extent.data.fd, offset, size, os.POSIX_FADV_WILLNEED)

    def data_file(self, version: ObjectVersion) -> OpenFile | None:
        """The data file, held open by the answer, to be sent or mapped; only what is verified in it counts."""
        extent = self._files.get(version.digest) or self._open(version)
        return extent.data if extent is not None else None

    def has_files(self, version: ObjectVersion) -> bool:
        """Whether the files of this object are there, so that a write makes none. Quick for objects in use."""
        return self._files.get(version.digest) is not None or self.has_rows(version)

    def has_rows(self, version: ObjectVersion) -> bool:
        """Whether any block of this object is here; then its files are too."""
        return any(self._entries.find(version.digest, block) != NOT_FOUND for block in range(version.block_count))

    # --- Changing: under the lock of the file. ---

    def write(self, version: ObjectVersion, offset: int, data: Buffer) -> None:
        """Bring chunks in. Raises OSError, or TierFull if the policy does not want them."""
        view = memoryview(data)
        with self._files.lock(version.digest):
            if self._files.open_locked(version.digest) is None:
                self._remove_all_locked(version)  # what is left of it, if somebody took its files away
            for block, piece_offset, length in split_by_block(offset, len(view)):
                piece = view[piece_offset - offset : piece_offset - offset + length]
                row = self._entries.find(version.digest, block)
                if row == NOT_FOUND:
                    self._write_new_locked(version, block, piece_offset // CHUNK_BYTES, piece)
                else:
                    self._write_more_locked(version, block, row, piece_offset // CHUNK_BYTES, piece)

    def _write_new_locked(self, version: ObjectVersion, block: int, first: int, piece: memoryview) -> None:
        """The first chunks of a block. Nothing of it is left if this fails."""
        digest = version.digest
        row = self._entries.begin(digest, block, len(piece))
        if row is None:
            raise TierFull("the eviction policy keeps what is cached and admits nothing new")
        slot = None
        try:
            slot = self._slots.take()
            self._slots.put(slot, digest, block, 0, 0, UNSETTLED)
            extent = self._files.open_locked(digest) or self._create_locked(version)
            self._begin_locked(extent, block)
            grown = self._write_chunks_locked(extent, first, piece)
            chunks = extent.count(block)
            self._slots.put(slot, digest, block, chunks, grown, SETTLED)
        except OSError:
            self._entries.abandon(row)
            self._undo_locked(digest, block, slot)
            raise
        published = self._entries.publish(row, digest, block, block_location(block, slot, chunks))
        assert published, "blocks of a file are only added under its lock"

    def _write_more_locked(self, version: ObjectVersion, block: int, row: int, first: int, piece: memoryview) -> None:
        """More chunks of a block that has some. Those stay if this fails."""
        extent = self._files.open_locked(version.digest)
        count = -(-len(piece) // CHUNK_BYTES)
        if extent is None or extent.present(first, count).all():
            return
        before = self._entries.location(row)
        slot, chunks = block_slot(before), block_parts(before)[1]
        held = self._slots.allocated(slot)
        self._slots.put(slot, version.digest, block, chunks, held, UNSETTLED)
        try:
            held += self._write_chunks_locked(extent, first, piece)
        finally:
            chunks_before, chunks = chunks, extent.count(block)
            after = block_location(block, slot, chunks)
            self._entries.relocate(row, before, after, (chunks - chunks_before) * CHUNK_BYTES)
        self._slots.put(slot, version.digest, block, chunks, held, SETTLED)

    def _write_chunks_locked(self, extent: Extent, first: int, piece: memoryview) -> int:
        """Data, then its entries in the map; the bytes by which the data file grew."""
        data_before, map_before = extent.data.allocated(), extent.map.allocated()
        data_after = data_before
        try:
            written = self._direct.write(extent.data, piece, first * CHUNK_BYTES)
            if written < len(piece):
                extent.data.write_at([piece[written:]], first * CHUNK_BYTES + written)
            extent.add(first, piece)
        finally:
            data_after = extent.data.allocated()
            self._space.settle(0, data_after - data_before + extent.map.allocated() - map_before)
        return data_after - data_before

    def _begin_locked(self, extent: Extent, block: int) -> None:
        before = extent.map.allocated()
        try:
            extent.begin(block)
        finally:
            self._space.settle(0, extent.map.allocated() - before)

    def _create_locked(self, version: ObjectVersion) -> Extent:
        extent = self._files.create_locked(version)
        self._space.settle(0, extent.allocated())
        self.count += 1
        return extent

    def _undo_locked(self, digest: bytes, block: int, slot: int | None) -> None:
        """Take back what a failed write left; as far as the disk lets us, the rest is for `reclaim`."""
        with contextlib.suppress(OSError):
            extent = self._files.open_locked(digest)
            if extent is not None:
                self._free_block_locked(extent, block)
            if slot is not None:
                self._slots.clear(slot)

    def evict(self, victim: Victim, on_evict: OnEvict | None) -> bool:
        """Take out one block; False if somebody else did. Raises OSError after the entry is out."""
        if on_evict is not None:
            self._hand_over(victim, on_evict)
        with self._files.lock(victim.digest):
            if not self._entries.remove(victim.row, victim.location):
                return False
            slot = block_slot(victim.location)
            try:
                self._slots.put(slot, victim.digest, victim.block, 0, self._slots.allocated(slot), UNSETTLED)
                extent = self._files.open_locked(victim.digest)
                if extent is not None:
                    self._free_block_locked(extent, victim.block)
                self._slots.clear(slot)
            finally:
                self._entries.release(victim.row)
        return True

    def drop(self, version: ObjectVersion) -> None:
        """Take everything of this version out. Raises OSError after its entries are out."""
        with self._files.lock(version.digest):
            self._remove_all_locked(version)

    def discard(self, version: ObjectVersion, offset: int, size: int) -> None:
        """Drop the blocks of a range whose bytes cannot be read. Raises OSError after an entry is out."""
        with self._gate as is_open:
            for block in blocks_of_range(offset, size) if is_open else ():
                row = self._entries.find(version.digest, block)
                if row != NOT_FOUND:
                    self.evict(Victim(row, self._entries.location(row), version.digest, block), None)

    def close(self) -> None:
        self._files.close()

    # --- Repair. ---

    def _open(self, version: ObjectVersion) -> Extent | None:
        """Open the files of an object that has rows; if they are gone or damaged, its rows go too."""
        with self._gate as is_open, self._files.lock(version.digest):
            if not is_open:
                return None
            extent = self._files.open_locked(version.digest)
            if extent is None and self._remove_all_locked(version):
                self._health.found_corrupt(f"the files of {version.key!r} are gone or their map is damaged")
            return extent

    def _examine(self, version: ObjectVersion, offset: int, size: int, *, is_absent: bool) -> bytes | None:
        """A read did not verify: its bytes if it was a race, None if some are absent or were damaged (and are dropped).

        `is_absent`: the read saw that something of the range is not here."""
        blocks = blocks_of_range(offset, size)
        if is_absent and not any(self._is_full(version, block) for block in blocks):
            return None  # the plain miss of a block that is only partly here
        with self._gate as is_open, self._files.lock(version.digest):
            extent = self._files.open_locked(version.digest) if is_open else None
            if extent is None:
                return None
            first_chunk = offset // CHUNK_BYTES
            count = (offset + size - 1) // CHUNK_BYTES + 1 - first_chunk
            start = first_chunk * CHUNK_BYTES
            length = min(count * CHUNK_BYTES, version.size - start)
            data = os.pread(extent.data.fd, length, start)
            damaged = self._damaged(extent, first_chunk, data.ljust(length, b"\0"), len(data))
            if not damaged and len(data) == length and extent.present(first_chunk, count).all():
                return data[offset - start : offset - start + size]
            if len(data) < length:
                os.ftruncate(extent.data.fd, version.size)
            for chunk in damaged:
                extent.take_out(chunk, 1)
            for block in blocks:
                self._recount_locked(extent, block)
        if damaged:
            self._health.found_corrupt(f"{len(damaged)} chunks of {version.key!r}", len(damaged))
        return None

    @staticmethod
    def _damaged(extent: Extent, first_chunk: int, data: bytes, read_bytes: int) -> list[int]:
        """The chunks with an entry that does not fit `data`, of which the file had the first `read_bytes`."""
        per_chunk = CHUNK_BYTES // extent.grain_bytes
        first = first_chunk * per_chunk
        actual = memoryview(extent.sums_of(first, data)).cast("Q")
        sums = memoryview(extent.sums(first, len(actual)).ljust(ENTRY_BYTES * len(actual), b"\0")).cast("Q")
        damaged = []
        for grain, (entry, found) in enumerate(zip(sums, actual, strict=True)):
            is_cut_off = read_bytes < min((grain + 1) * extent.grain_bytes, len(data))
            if entry and (is_cut_off or entry != found):
                damaged.append(first_chunk + grain // per_chunk)
        return list(dict.fromkeys(damaged))

    def _is_full(self, version: ObjectVersion, block: int) -> bool:
        row = self._entries.find(version.digest, block)
        if row == NOT_FOUND:
            return False
        return block_parts(self._entries.location(row))[1] == chunks_in_block(version.size, block)

    def _recount_locked(self, extent: Extent, block: int) -> None:
        """Make the row of a block say what its map says."""
        row = self._entries.find(extent.digest, block)
        if row == NOT_FOUND:
            return
        location = self._entries.location(row)
        slot, chunks = block_slot(location), extent.count(block)
        if chunks:
            self._entries.relocate(row, location, block_location(block, slot, chunks))
            self._slots.put(slot, extent.digest, block, chunks, self._slots.allocated(slot), SETTLED)
        elif self._entries.remove(row, location):
            try:
                self._free_block_locked(extent, block)
                self._slots.clear(slot)
            finally:
                self._entries.release(row)

    def _free_block_locked(self, extent: Extent, block: int) -> None:
        """Clear a block that has no row any more, and remove the files with their last block."""
        before = extent.allocated()
        try:
            extent.clear(block)
            offset, size, neighbours = extent.map_pages(block)
            if all(self._entries.find(extent.digest, other) == NOT_FOUND for other in neighbours):
                extent.map.punch(offset, size)
        finally:
            self._space.settle(0, extent.allocated() - before)
        if extent.data.allocated() <= _EMPTY_FILE_BYTES and not self.has_rows(extent.version):
            self._space.settle(0, -self._files.remove_locked(extent.digest))
            self.count -= 1

    def _remove_all_locked(self, version: ObjectVersion) -> int:
        """Take the rows of all blocks out, and the files away; how many rows there were. Raises OSError after that."""
        slots = []
        for block in range(version.block_count):
            row = self._entries.find(version.digest, block)
            location = self._entries.location(row) if row != NOT_FOUND else 0
            if location and self._entries.remove(row, location):
                self._entries.release(row)
                slots.append((block_slot(location), block))
        self.count -= bool(slots)
        for slot, block in slots:
            self._slots.put(slot, version.digest, block, 0, 0, UNSETTLED)
        self._space.settle(0, -self._files.remove_locked(version.digest))
        for slot, _ in slots:
            self._slots.clear(slot)
        return len(slots)

    def _hand_over(self, victim: Victim, on_evict: OnEvict) -> None:
        """Give what is present of a block, verified, to whoever wants it before it goes; in runs without gaps."""
        with self._files.lock(victim.digest):
            extent = self._files.open_locked(victim.digest)
        if extent is None:
            return
        version = extent.version
        start, length = version.block_range(victim.block)
        gaps = [*self.missing(version, start, length), (start + length, 0)]
        for gap_offset, gap_size in gaps:
            if gap_offset > start:
                data = self._read_verified(version, start, gap_offset - start)
                if data is not None:
                    on_evict(version, start, data)
            start = gap_offset + gap_size


def _has_absent(sums: bytes, count: int) -> bool:
    return len(sums) < ENTRY_BYTES * count or 0 in memoryview(sums).cast("Q").tolist()
