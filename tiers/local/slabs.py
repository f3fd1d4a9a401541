"""Small objects: appended to slabs, read whole or in part, evicted by punching holes.

A slab is only appended to. Evicting an object sets the flag in its record and gives the pages of its frame back; a
page that it shares with neighbours goes with the last of them. Where much is dead and little could be given back
(objects smaller than a page), the slab is *compacted*: the living move to the end of the newest slab.
"""

import errno
import os
import struct
import threading
from pathlib import Path

import numpy as np

from ..understore import Buffer
from ..version import CHUNK_BYTES, ObjectVersion
from . import slab_file as fmt
from .checksum import chunk_sums, pack_sums, seed_of
from .entries import Entries, OnEvict, Victim
from .files import OpenCache, OpenFile, Recent
from .health import Health
from .index import MAX_SLAB_NUMBER, NOT_FOUND, SLAB_UNIT_BYTES, small_location, small_parts
from .space import Space

# Objects up to this size are read whole even if a part is wanted: one read instead of two.
READ_WHOLE_BYTES = 128 * 1024
# Beyond a frame: a page on either side, record page, file system's own block.
_WRITE_SLACK_BYTES = 16 * 1024
# A new slab's header, its first records and the folder's growth.
_CREATE_SLACK_BYTES = 24 * 1024
_COMPACT_BELOW = 0.5
_COMPACT_MIN_BYTES = 1024 * 1024
_DEAD = struct.pack("<H", fmt.DEAD)


class SlabHandle(Recent):
    """The open file of a slab."""

    __slots__ = ("file",)

    def __init__(self, file: OpenFile) -> None:
        super().__init__()
        self.file = file


class Slab:
    """What is known of one slab. `lock` guards everything here but not its reads."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.lock = threading.Lock()
        self.end = fmt.FRAMES_OFFSET  # where the next frame goes
        self.records = 0  # number of the next record
        self.writing = 0  # frames that were given out and not yet recorded
        self.live = 0
        self.live_bytes = 0
        self.allocated = 0


class Slabs:
    """All small objects of a tier."""

    def __init__(self, folder: Path, entries: Entries, space: Space, health: Health, max_open: int) -> None:
        self._folder = folder
        self._entries = entries
        self._space = space
        self._health = health
        self._open: OpenCache[int, SlabHandle] = OpenCache(max_open)
        self._lock = threading.Lock()
        self._slabs: dict[int, Slab] = {}
        self._active: Slab | None = None

    @property
    def count(self) -> int:
        return len(self._slabs)

    # --- Reading. ---

    def read(self, version: ObjectVersion, offset: int, size: int) -> Buffer | None:
        """The verified bytes, or None. The range is inside the object and not empty."""
        row = self._entries.find(version.digest)
        if row == NOT_FOUND:
            return None
        location = self._entries.location(row)
        number, start, _ = small_parts(location)
        handle = self._open.get(number) or self._open_slab(number)
        whole = version.size
        if handle is not None:
            body = fmt.data_offset(whole)
            if size >= whole or whole <= READ_WHOLE_BYTES:
                frame = os.pread(handle.file.fd, body + whole, start)
                data = memoryview(frame)[body:]
                sums, first, skip = frame[fmt.FRAME_HEAD_BYTES : body], 0, offset
                expected = whole
            else:
                first = offset // CHUNK_BYTES
                count = (offset + size - 1) // CHUNK_BYTES + 1 - first
                expected = min(count * CHUNK_BYTES, whole - first * CHUNK_BYTES)
                sums = os.pread(handle.file.fd, 8 * count, start + fmt.FRAME_HEAD_BYTES + 8 * first)
                data = memoryview(os.pread(handle.file.fd, expected, start + body + first * CHUNK_BYTES))
                skip = offset - first * CHUNK_BYTES
            if len(data) == expected and pack_sums(chunk_sums(seed_of(version.digest), first, data)) == sums:
                self._entries.hit(row)
                return data[skip : skip + size]
        # Evicted, or moved by a compaction, a moment ago: a miss. Still said to be there: damage.
        if self._entries.remove(row, location):
            self._health.found_corrupt(f"small object {version.key!r}")
            try:
                self._kill(number, [start])
            finally:
                self._entries.release(row)
        return None

    def readahead(self, version: ObjectVersion) -> None:
        row = self._entries.find(version.digest)
        if row != NOT_FOUND:
            number, start, _ = small_parts(self._entries.location(row))
            handle = self._open.get(number)
            if handle is not None:
                os.posix_fadvise(handle.file.fd, start, fmt.frame_bytes(version.size, 0), os.POSIX_FADV_WILLNEED)

    # --- Changing. ---

    def write(self, version: ObjectVersion, data: memoryview, row: int) -> int:
        """Append the object; returns its location, which the caller publishes for `row`. Raises OSError."""
        head, who = fmt.pack_frame(version, data)
        size = len(head) + len(data) + len(who)
        slab, offset, record = self._allocate(size)
        written = False
        try:
            handle = self._open.get(slab.number) or self._open_slab(slab.number)
            if handle is None:
                raise FileNotFoundError(errno.ENOENT, "the slab is gone", str(slab.path))
            handle.file.write_at([head, data, who], offset)
            handle.file.write_at(
                [fmt.pack_record(version.digest, offset, version.size, len(who))],
                fmt.RECORDS_OFFSET + record * fmt.RECORD_BYTES,
            )
            written = True
        finally:
            with slab.lock:
                slab.writing -= 1
                if written:
                    slab.live += 1
                    slab.live_bytes += size
                self._measure_locked(slab)
                if slab.allocated == 0:  # deleted underneath: what is written there is seen by nobody
                    slab.end = fmt.SLAB_BYTES
        return small_location(slab.number, offset, version.size)

    def forget_write(self, location: int) -> None:
        """The object of a write that nobody wants any more (somebody else was faster) is dead again."""
        number, offset, _ = small_parts(location)
        self._kill(number, [offset])

    def drop(self, row: int) -> None:
        """Take one object out. Raises OSError after its entry is out."""
        location = self._entries.location(row)
        if self._entries.remove(row, location):
            self.free([Victim(row, location, b"", 0)], None)

    def free(self, removed: list[Victim], on_evict: OnEvict | None) -> None:
        """Free the bytes of entries that were removed. Raises OSError after all of them are released."""
        by_slab: dict[int, list[int]] = {}
        try:
            for victim in removed:
                number, offset, _ = small_parts(victim.location)
                by_slab.setdefault(number, []).append(offset)
                if on_evict is not None and (found := self._frame(victim)) is not None:
                    on_evict(found[0], 0, found[1])
            for number, offsets in by_slab.items():
                self._kill(number, offsets)
        finally:
            for victim in removed:
                self._entries.release(victim.row)

    def _frame(self, victim: Victim) -> tuple[ObjectVersion, memoryview] | None:
        """The verified object of an entry, with its identity; None if it is damaged or gone."""
        number, offset, size = small_parts(victim.location)
        handle = self._open.get(number) or self._open_slab(number)
        if handle is None:
            return None
        head = os.pread(handle.file.fd, fmt.FRAME_HEAD_BYTES, offset)
        if len(head) < fmt.FRAME_HEAD_BYTES:
            return None
        identity_bytes = int.from_bytes(head[4:8], "little")
        frame = os.pread(handle.file.fd, fmt.frame_bytes(size, min(identity_bytes, 0xFFFF)), offset)
        return fmt.unpack_frame(frame, victim.digest)

    # --- Restart. ---

    def recover(self) -> None:
        """Find the slabs and what lives in them, oldest first. Damaged slabs are removed."""
        firsts, seconds, locations, sizes = [], [], [], []
        for path in sorted(self._folder.glob("*.slab")):
            slab = self._recover_slab(path)
            if slab is None:
                continue
            self._slabs[slab.number] = slab
            self._space.settle(0, slab.allocated)
            handle = self._open.get(slab.number) or self._open_slab(slab.number)
            if handle is None:
                continue
            records = fmt.read_records(handle.file)
            whole = fmt.verify_records(records)
            written = records["unit"] != 0
            damaged = int((written & ~whole).sum())
            if damaged:
                self._health.found_corrupt(f"{damaged} records of {path.name}", damaged)
            good = records[whole]
            slab.records = len(records)
            if len(good):
                ends = good["unit"].astype(np.int64) * SLAB_UNIT_BYTES + fmt.frame_sizes(good)
                slab.end = _align(int(ends.max()))
            living = good[good["flag"] == fmt.LIVE]
            slab.live = len(living)
            slab.live_bytes = int(fmt.frame_sizes(living).sum())
            firsts.append(living["first"])
            seconds.append(living["second"])
            locations.append(
                np.uint64(slab.number << 43)
                | living["unit"].astype(np.uint64) << np.uint64(21)
                | living["size"].astype(np.uint64)
            )
            sizes.append(living["size"].astype(np.int64))
        if not firsts:
            return
        first, second = np.concatenate(firsts), np.concatenate(seconds)
        location, size = np.concatenate(locations), np.concatenate(sizes)
        # An object that was written twice (a crash before the first was flagged dead) is kept once.
        keys = np.empty(len(first), [("first", "<u8"), ("second", "<u8")])
        keys["first"], keys["second"] = first, second
        order = np.argsort(first, kind="stable")
        same = np.flatnonzero(first[order][1:] == first[order][:-1])
        if len(same):
            _, kept = np.unique(keys, return_index=True)
            kept.sort()
            for twin in np.setdiff1d(np.arange(len(first)), kept).tolist():
                number, offset, _ = small_parts(int(location[twin]))
                self._kill(number, [offset])
            first, second, location, size = first[kept], second[kept], location[kept], size[kept]
        self._entries.restore(first, second, location, size)
        newest = max(self._slabs.values(), key=lambda slab: slab.number, default=None)
        if newest is not None and newest.end < fmt.SLAB_BYTES // 2 and newest.records < fmt.MAX_RECORDS // 2:
            self._active = newest

    def validate(self) -> None:
        """Recount what lives in each slab and what it allocates; nobody may be writing."""
        for slab in list(self._slabs.values()):
            low, high = slab.number << 43, (slab.number + 1) << 43
            assert slab.writing == 0
            assert slab.live == len(self._entries.rows_where(low, high)), (slab.number, slab.live)
            if slab.path.exists():
                assert slab.allocated == slab.path.stat().st_blocks * 512, slab.path

    def allocated(self) -> int:
        return sum(slab.allocated for slab in list(self._slabs.values()))

    def close(self) -> None:
        self._open.clear()

    # --- Inside. ---

    def _recover_slab(self, path: Path) -> Slab | None:
        try:
            number = int(path.stem)
            file = OpenFile(path, os.O_RDWR)
        except (ValueError, OSError):
            return None
        head = os.pread(file.fd, fmt.SLAB_HEADER_BYTES, 0)
        if not 0 < number <= MAX_SLAB_NUMBER or not fmt.is_slab_header(head, number):
            self._health.found_corrupt(f"the header of {path.name}")
            path.unlink(missing_ok=True)
            return None
        slab = Slab(number, path)
        slab.allocated = file.allocated()
        self._open.put(number, SlabHandle(file))
        return slab

    def _open_slab(self, number: int) -> SlabHandle | None:
        slab = self._slabs.get(number)
        if slab is None:
            return None
        try:
            handle = SlabHandle(OpenFile(slab.path, os.O_RDWR))
        except FileNotFoundError:
            return None
        self._open.put(number, handle)
        return handle

    def _allocate(self, size: int) -> tuple[Slab, int, int]:
        """A place for a frame in the active slab, or in a new one: (slab, offset, number of the record)."""
        with self._lock:
            slab = self._active
            if slab is not None:
                place = self._place(slab, size)
                if place is not None:
                    return slab, *place
            slab = self._new_slab_locked()
            self._active = slab
            place = self._place(slab, size)
            assert place is not None, "a frame fits into an empty slab"
            return slab, *place

    @staticmethod
    def _place(slab: Slab, size: int) -> tuple[int, int] | None:
        with slab.lock:
            offset = slab.end
            if size >= fmt.PAGE_ALIGNED_FROM_BYTES:
                offset = -(-offset // fmt.PAGE_BYTES) * fmt.PAGE_BYTES
            if offset + size > fmt.SLAB_BYTES or slab.records >= fmt.MAX_RECORDS:
                return None
            slab.end = _align(offset + size)
            slab.records += 1
            slab.writing += 1
            return offset, slab.records - 1

    def _new_slab_locked(self) -> Slab:
        number = max(self._slabs, default=0) + 1
        if number > MAX_SLAB_NUMBER:
            number = next(n for n in range(1, MAX_SLAB_NUMBER) if n not in self._slabs)
        slab = Slab(number, self._folder / f"{number:07d}.slab")
        file = OpenFile(slab.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        file.write_at([fmt.pack_slab_header(number)], 0)
        with slab.lock:
            self._measure_locked(slab)
        self._slabs[number] = slab
        self._open.put(number, SlabHandle(file))
        return slab

    def _measure_locked(self, slab: Slab) -> None:
        """Take over what the file system says that the slab allocates."""
        try:
            now = slab.path.stat().st_blocks * 512
        except FileNotFoundError:
            now = 0
        self._space.settle(0, now - slab.allocated)
        slab.allocated = now

    def _kill(self, number: int, offsets: list[int]) -> None:
        """Flag the records of these frames dead, give their pages back, remove the slab with its last object."""
        slab = self._slabs.get(number)
        handle = (self._open.get(number) or self._open_slab(number)) if slab is not None else None
        if slab is None:
            return
        with slab.lock:
            if handle is not None:
                records = fmt.read_records(handle.file)
                frames = _Frames(records)
                for offset in offsets:
                    at = frames.find(offset)
                    if at is None or frames.dead[at]:
                        continue
                    handle.file.write_at([_DEAD], fmt.RECORDS_OFFSET + at * fmt.RECORD_BYTES + fmt.FLAG_OFFSET)
                    frames.dead[at] = True
                    slab.live -= 1
                    slab.live_bytes -= int(frames.sizes[at])
                for start, size in frames.holes(offsets, quiet=slab.writing == 0):
                    handle.file.punch(start, size)
            self._measure_locked(slab)
            gone = slab.live == 0 and slab.writing == 0
        if gone:
            self._remove_if_empty(slab)

    def _remove_if_empty(self, slab: Slab) -> None:
        with self._lock, slab.lock:
            if slab.live or slab.writing or self._slabs.get(slab.number) is not slab:
                return
            if self._active is slab:
                return
            del self._slabs[slab.number]
            self._open.pop(slab.number)
            slab.path.unlink(missing_ok=True)
            self._measure_locked(slab)


class _Frames:
    """The frames of a slab by their place. Records that are damaged, or were never written, are no frames."""

    def __init__(self, records: fmt.Records) -> None:
        whole = fmt.verify_records(records)
        offsets = np.where(whole, records["unit"].astype(np.int64) * SLAB_UNIT_BYTES, 0)
        self._order = np.argsort(offsets, kind="stable")
        self._sorted = offsets[self._order]
        self.sizes = np.where(whole, fmt.frame_sizes(records), 0)
        self.dead = (records["flag"] == fmt.DEAD) | ~whole

    def find(self, offset: int) -> int | None:
        """The record number of the frame at `offset`."""
        position = int(np.searchsorted(self._sorted, offset))
        if position == len(self._sorted) or self._sorted[position] != offset:
            return None
        return int(self._order[position])

    def holes(self, offsets: list[int], *, quiet: bool) -> list[tuple[int, int]]:
        """Page-aligned ranges in which nothing lives any more, around the dead frames at `offsets`.

        A page at the edge that a frame shares with neighbours goes too if all of them are dead. A gap between
        frames may be one that is being written just now, unless the slab is `quiet`.
        """
        found: dict[int, int] = {}
        for offset in offsets:
            at = self.find(offset)
            if at is None:
                continue
            start, end = offset, _align(offset + int(self.sizes[at]))
            position = int(np.searchsorted(self._sorted, offset))
            first = _page_up(self._dead_from(position, start, _page_down(start), quiet))
            last = _page_down(self._dead_until(position, end, _page_up(end), quiet))
            if last > first:
                found[first] = max(last, found.get(first, 0))
        return [(first, last - first) for first, last in found.items()]

    def _dead_from(self, position: int, start: int, low: int, quiet: bool) -> int:
        """How far down, at most to `low`, nothing lives before the dead frame at `position`."""
        while start > low:
            position -= 1
            if position < 0:
                return low if quiet else start
            neighbour, offset = int(self._order[position]), int(self._sorted[position])
            end = _align(offset + int(self.sizes[neighbour]))
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
            end = _align(offset + int(self.sizes[neighbour]))
        return high


def _page_up(offset: int) -> int:
    return -(-offset // fmt.PAGE_BYTES) * fmt.PAGE_BYTES


def _page_down(offset: int) -> int:
    return offset // fmt.PAGE_BYTES * fmt.PAGE_BYTES


def _align(offset: int) -> int:
    return -(-offset // SLAB_UNIT_BYTES) * SLAB_UNIT_BYTES


def write_need_bytes(version: ObjectVersion) -> int:
    """An upper bound of what writing this object can allocate."""
    return version.size + sums_and_identity_bytes(version) + _WRITE_SLACK_BYTES + _CREATE_SLACK_BYTES


def sums_and_identity_bytes(version: ObjectVersion) -> int:
    # A character of a key takes at most 4 bytes as UTF-8.
    texts = 4 * (len(version.store) + len(version.key) + len(version.etag) + len(version.version_id or ""))
    return fmt.frame_bytes(version.size, texts + 64) - version.size
